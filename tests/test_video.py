"""What holds for all video methods on clips, and their parts."""

from __future__ import annotations

import pytest
import torch

import tokensieve as ts
from tests.clips import CLIPS, clip, kept
from tokensieve.core import method_registry
from tokensieve.core.method_registry import get_method
from tokensieve.parts.score import temporal
from tokensieve.testing import same, slots
from tokensieve.testing.draw import features, rows, signals, tokens

VARIANTS = [
    *((name, {}) for name in method_registry.list_methods(family="video")),
    ("centerclip", {"algorithm": "spectral", "segment": 3}),
    *(("quota", {"within": way}) for way in ("merge", "uniform", "attention")),
]


# ---- all of them, with frames


@pytest.mark.parametrize(("name", "options"), VARIANTS)
@pytest.mark.parametrize(("batch", "sizes", "keep"), [*CLIPS, (3, [12] * 4, 47)])
def test_clips_keep_the_contract(name, options, batch, sizes, keep):
    """Exact budgets, independent rows, and padding as if it were not there, with frames that differ between rows."""
    made = get_method(name, **options)
    x, frame = clip(batch, sizes, still=0.5 if "spectral" in options.values() else 0.0)
    n = sum(sizes)
    frame = torch.stack([(frame[b] + b * (torch.arange(n) % 5 == 0)).sort().values * 10 + b for b in range(batch)])
    given = {**signals(made, batch, n, 12), "frame": frame}
    r = ts.reduce(x, made, keep, **given)
    assert r.counts.tolist() == [keep] * batch
    slots(r)
    for b in range(batch):
        same(r.rows(slice(b, b + 1)), ts.reduce(x[b : b + 1], made, keep, **rows(given, slice(b, b + 1))))
    mask = torch.arange(n) % 4 != 1
    padded = ts.reduce(x, made, keep, mask=mask.expand(batch, -1), **given)
    place = mask.nonzero()[:, 0]
    alone = ts.reduce(x[:, place], made, keep, **tokens(given, place))
    assert kept(padded) == [place[row].tolist() for row in map(torch.tensor, kept(alone))]
    torch.testing.assert_close(padded.dense()[:, :, place], alone.dense())
    assert not bool(padded.dense()[:, :, ~mask].any())


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_tokens_of_no_frame_are_counted_too(name, options):
    made = get_method(name, **options)
    x, frame = clip(2, [8] * 4)
    frame[:, 7::8] = -1
    for keep in (3, 20, 31):
        r = ts.reduce(x, made, keep, **{**signals(made, 2, 32, 12), "frame": frame})
        assert r.counts.tolist() == [keep] * 2
        slots(r)


# ---- parts


def test_tables_lay_frames_out_and_back():
    frame = torch.tensor([[0, 0, 1, -1, 2, 1, 0], [1, 0, 0, 0, -1, -1, 1]])
    place, real = temporal.table(frame)
    assert place[real].tolist() == [0, 1, 6, 2, 5, 4, 1, 2, 3, 0, 6]
    assert real.sum(2).tolist() == [[3, 2, 1], [3, 2, 0]]
    assert temporal.places(frame).tolist() == [[0, 1, 0, -1, 0, 1, 2], [0, 0, 1, 2, -1, -1, 1]]
    assert temporal.before(frame).tolist() == [[-1, -1, 0, -1, 2, 1, -1], [1, -1, -1, -1, -1, -1, 2]]
    x = features(2, 7, 3)
    again = temporal.back(temporal.rows(x, place)[..., 0].view(place.shape), place, real, 7, -5.0)
    assert torch.equal(again, torch.where(frame >= 0, x[..., 0], torch.tensor(-5.0)))
    mean = temporal.means(x, frame)
    torch.testing.assert_close(mean[0, 1], (x[0, 2] + x[0, 5]) / 2)
    assert torch.equal(mean[1, 2], torch.zeros(3))
    assert temporal.dense(torch.tensor([[30, 10, 30, 99, 20]]), torch.tensor([[1, 1, 1, 0, 1]]).bool()).tolist() == [
        [2, 0, 2, -1, 1]
    ]


@pytest.mark.parametrize(("name", "options"), [("lftr", {"window": 0}), ("centerclip", {"segment": 0})])
def test_windows_of_no_frame_are_refused(name, options):
    with pytest.raises(ValueError, match="it must be at least 1"):
        get_method(name, **options)


@pytest.mark.parametrize(("name", "options"), [("quota", {"within": "x"}), ("centerclip", {"algorithm": "x"})])
def test_unknown_ways_are_refused(name, options):
    with pytest.raises(ValueError, match="it must be one of"):
        get_method(name, **options)
