"""The picture of the cache's leaderboard."""

from PIL import Image

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
