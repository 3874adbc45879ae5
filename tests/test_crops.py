"""Crops and groups: the parts on their own."""

from __future__ import annotations

import torch

import tokensieve as ts
from tests.test_parity_crops import CROPPED, SIDE, pictures
from tests.test_parity_vlm import unit
from tokensieve.parts.score import crops
from tokensieve.parts.select import groups
from tokensieve.testing import features


def test_seen_is_bilinear():
    """A plane is seen as it is inside the outermost thumbnail tokens, and goes on flat beyond; in blocks as at once."""
    _, given = pictures([(2, 2), (0, 0)])
    spot = given["spot"]
    thumbnail = given["mask"] & (given["crop"] == 0)
    value = 2 * spot[..., 0] - spot[..., 1]
    edge = spot.clamp(0.5 / SIDE, 1 - 0.5 / SIDE)
    want = 2 * edge[..., 0] - edge[..., 1]
    torch.testing.assert_close(crops.seen(value, spot, thumbnail)[given["mask"]], want[given["mask"]])


def test_seen_in_blocks(monkeypatch):
    x, given = pictures()
    thumbnail = given["mask"] & (given["crop"] == 0)
    whole = crops.seen(x[..., 0], given["spot"], thumbnail)
    monkeypatch.setattr(crops, "BLOCK", 200)
    assert torch.equal(crops.seen(x[..., 0], given["spot"], thumbnail), whole)


def test_regions_without_a_thumbnail_or_crops():
    x, given = pictures([(2, 2), (1, 2)])
    mask = given["mask"].clone()
    mask[0] &= given["crop"][0] != 0
    mask[1] &= given["crop"][1] <= 0
    s = ts.Signals(features=x, mask=mask, crop=given["crop"], spot=given["spot"])
    assert bool((crops.regions(s.spots, *crops.of(s)[:1], mask, 6) == -1).all())
    for name in CROPPED:
        r = ts.reduce(x, name, 7, **given | {"mask": mask})
        assert r.counts.tolist() == [7, 7]


def test_alike_in_blocks(monkeypatch):
    keys, group = features(2, 50, 4), torch.arange(50).expand(2, -1) // 20
    candidates = torch.ones(2, 50, dtype=torch.bool)
    candidates[0, 3:9] = False
    whole = groups.count_similar(keys, 0.3, group, candidates, 3)
    monkeypatch.setattr(groups, "ROWS", 2)
    torch.testing.assert_close(groups.count_similar(keys, 0.3, group, candidates, 3), whole)
    for i in range(50):
        same = [j for j in range(50) if candidates[0, j] and group[0, j] == group[0, i]]
        want = sum(float(unit(keys[0, i]) @ unit(keys[0, j])) > 0.3 for j in same) if candidates[0, i] else 0
        assert int(whole[0, i]) == want


def test_sums_and_scaled_by_group():
    value, group = features(2, 12, 1)[..., 0], torch.randint(-1, 3, (2, 12), generator=torch.Generator().manual_seed(0))
    candidates = torch.arange(12)[None] < torch.tensor([[12], [7]])
    summed, scaled = groups.sums(value, group, candidates, 3), groups.scaled(value, group, candidates, 3)
    for b in range(2):
        for g in range(3):
            inside = (group[b] == g) & candidates[b]
            torch.testing.assert_close(summed[b, g], value[b, inside].double().sum())
            torch.testing.assert_close(scaled[b, inside], value[b, inside] / value[b, inside].norm())
        assert not bool(scaled[b, (group[b] < 0) | ~candidates[b]].any())
