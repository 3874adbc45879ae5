"""The picture of the cache's leaderboard."""

import numpy as np
from PIL import Image

from benchmarks import cache_plot
from benchmarks.cache_plot import plot


def test_budgets_not_measured_yet_leave_the_rest_to_be_drawn(tmp_path):
    full = {"bytes": 100.0, "bits per byte": 1.0, "facts": 1.0}
    rows = {
        "random": {0.25: {"bytes": 26.0, "bits per byte": 1.3, "facts": 0.1}},
        "h2o": {k: {"bytes": 100 * k, "bits per byte": 1.2 - k / 10, "facts": k} for k in (0.5, 0.1)},
        "later": {},
    }
    plot(full, rows, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.width > picture.height > 400
    assert [f.name for f in tmp_path.iterdir()] == ["plot.png"]


def test_names_stand_apart_beside_points_that_are_alone(tmp_path, monkeypatch):
    """Where each method has one budget, no line tells them from each other: each point has its name, in the order of points."""
    drawn = []
    monkeypatch.setattr(cache_plot.plt, "close", drawn.append)
    full = {"bytes": 100.0, "bits per byte": 1.0, "facts": 1.0}
    near = {f"m{i}": {0.25: {"bytes": 25.0, "bits per byte": 1.2 + i / 1e4, "facts": i / 20}} for i in range(16)}
    plot(full, near | {"later": {}}, tmp_path / "plot.png")
    (figure,) = drawn
    assert not figure.legends
    for axis in figure.axes:
        names = {t.get_text(): t.xyann[1] for t in axis.texts if t.get_text() != "full cache"}
        assert list(names) == [f"m{i}" for i in range(16)]
        assert min(np.diff([*names.values()])) > 0.04
        assert 0 < min(names.values()) < max(names.values()) < 1
    several = near | {"h2o": {k: {"bytes": 100 * k, "bits per byte": 1.2, "facts": k} for k in (0.5, 0.1)}}
    plot(full, several, tmp_path / "plot.png")
    assert figure.axes
    assert len(drawn[1].legends) == 1
