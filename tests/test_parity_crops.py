"""Methods that share a budget over crops, against plain loops written from the papers' definitions."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

import tokensieve as ts
from tests.test_parity_vlm import attention, best, kept, unit
from tokensieve.core.method_registry import get_method
from tokensieve.parts import select
from tokensieve.testing import features

CROPPED = ["hired", "globalcom2", "token-correlation"]
LAYOUTS = [(2, 2), (1, 3), (3, 1), (1, 1), (0, 0)]
SIDE = 4


def layout(high: int, wide: int) -> tuple[list[int], list[tuple[float, float]]]:
    """Crop and spot of every token: a thumbnail of SIDE x SIDE, then high x wide crops of as many, each with a line end."""
    cells = [(y, x) for y in range(SIDE) for x in range(SIDE)]
    crop = [0] * len(cells)
    spot = [((y + 0.5) / SIDE, (x + 0.5) / SIDE) for y, x in cells]
    for i in range(high * wide):
        crop += [i + 1] * len(cells) + [-1]
        spot += [((i // wide + (y + 0.5) / SIDE) / high, (i % wide + (x + 0.5) / SIDE) / wide) for y, x in cells]
        spot.append((1.0, 1.0))
    return crop, spot


def pictures(layouts=LAYOUTS, dim: int = 8, seed: int = 0):
    """Pictures of several layouts in one batch, padded on alternating sides, with random signals."""
    made = [layout(*each) for each in layouts]
    n = max(len(crop) for crop, _ in made)
    b = len(made)
    mask, crop, spot = torch.zeros(b, n, dtype=torch.bool), torch.zeros(b, n, dtype=torch.long), torch.zeros(b, n, 2)
    for i, (c, p) in enumerate(made):
        start = (n - len(c)) * (i % 2)
        held = slice(start, start + len(c))
        mask[i, held], crop[i, held], spot[i, held] = True, torch.tensor(c), torch.tensor(p)
    given = {
        "mask": mask,
        "crop": crop,
        "spot": spot,
        "cls_attention": {i: attention(b, 3, n, seed=seed + i + 9) for i in (0, -2)},
        "keys": features(b, n, dim, seed=seed + 2),
    }
    return features(b, n, dim, seed=seed + 1), given


def without(given, *names):
    return {k: v for k, v in given.items() if k not in names}


def rows_of(given, b, place=slice(None)):
    """The signals of one row and, of it, of some tokens."""
    out = {"crop": given["crop"][b : b + 1, place], "spot": given["spot"][b : b + 1, place]}
    out["keys"] = given["keys"][b : b + 1, place]
    out["cls_attention"] = {i: a[b : b + 1, :, place] for i, a in given["cls_attention"].items()}
    return out


def shares(total, weight, most):
    """A total shared out by weight: full groups first, then largest remainders; without weight, by what groups hold."""
    full: dict[int, int] = {}
    while True:
        left = [g for g in range(len(most)) if g not in full]
        mass = {g: Fraction(float(weight[g])) if most[g] else Fraction(0) for g in left}
        if sum(mass.values()) == 0:
            mass = {g: Fraction(most[g]) for g in left}
        rest = total - sum(full.values())
        want = {g: rest * mass[g] / sum(mass.values()) if sum(mass.values()) else Fraction(0) for g in left}
        over = [g for g in left if want[g] >= most[g]]
        if not over:
            break
        full |= {g: most[g] for g in over}
    count = [full.get(g, math.floor(want.get(g, 0))) for g in range(len(most))]
    for g in sorted(want, key=lambda g: (count[g] - want[g], g))[: total - sum(count)]:
        count[g] += 1
    return count


def by_crop(crop, valid):
    """Members of the thumbnail, of every crop, and of none."""
    number = max(int(c) for c in crop) + 1
    return [[i for i in valid if crop[i] == g] for g in range(number)] + [[i for i in valid if crop[i] < 0]]


def region(i, spot, parts):
    """The crop whose nearest token is nearest to token i; the first of several."""
    far = {
        g: min(max(abs(float(spot[i][a]) - float(spot[j][a])) for a in (0, 1)) for j in parts[g])
        for g in range(1, len(parts) - 1)
        if parts[g]
    }
    return min(far, key=lambda g: (round(far[g], 5), g)) if far else None


def each_best(score_, count, parts):
    return sorted(i for c, p in zip(count, parts, strict=True) for i in best(score_, c, p))


def every_row(x, given, keep):
    """Crop, spot, valid tokens, attention by layer, and keys of each row, and its budget."""
    for b in range(len(x)):
        valid = given["mask"][b].nonzero()[:, 0].tolist()
        a = {i: v[b].double().mean(0) for i, v in given["cls_attention"].items()}
        yield given["crop"][b].tolist(), given["spot"][b], valid, a, given["keys"][b], min(keep, len(valid))


# ---- HiRED: arXiv 2408.10945


def hired(crop, spot, valid, early, late, keep, alpha):
    parts = by_crop(crop, valid)
    held = [len(p) for p in parts]
    thumbnail = min(math.floor(keep * alpha + 0.5), keep - 1)
    thumbnail = max(min(thumbnail, held[0]), keep - sum(held[1:]))
    weight = [0.0] * len(parts)
    for i in parts[0]:
        g = region(i, spot, parts)
        if g is not None:
            weight[g] += float(early[i])
    count = shares(keep - thumbnail, weight, [0, *held[1:]])
    count[0] = thumbnail
    return each_best(late, count, parts)


@pytest.mark.parametrize("alpha", [0.5, 0.2])
@pytest.mark.parametrize("keep", [1, 2, 9, 30, 60])
def test_hired(keep, alpha):
    x, given = pictures()
    r = ts.reduce(x, get_method("hired", alpha=alpha), keep, **without(given, "keys"))
    want = [
        hired(crop, spot, valid, a[0], a[-2], k, alpha) if k < len(valid) else valid
        for crop, spot, valid, a, _, k in every_row(x, given, keep)
    ]
    assert kept(r) == want


def test_hired_spends_where_the_thumbnail_looks():
    """All early attention of the thumbnail on its upper left quarter: the crop there takes all that crops get."""
    x, given = pictures([(2, 2)])
    early = torch.zeros(1, 1, x.shape[1])
    early[..., [0, 1, SIDE, SIDE + 1]] = 0.25
    late = given["cls_attention"][-2]
    r = ts.reduce(x, "hired", 20, **given | {"cls_attention": {0: early, -2: late}, "keys": None})
    assert torch.bincount(given["crop"][0, r.kept[0]]).tolist() == [10, 10]


# ---- GlobalCom2: arXiv 2501.05179


def globalcom2(crop, high, wide, valid, a, keep, temperature=10.0):
    """The picture's layout is known here, so that regions and the thumbnail's say come from resizing its grid."""
    parts = by_crop(crop, valid)
    held = [len(p) for p in parts]
    if high == 0:
        return sorted(best(a, keep, parts[0]))
    plane = a[parts[0]].reshape(1, 1, SIDE, SIDE)
    resized = interpolate(plane, size=(high * SIDE, wide * SIDE), mode="bilinear", align_corners=False)[0, 0]
    logit = np.log(np.array(a[parts[0]])).reshape(SIDE, SIDE)
    logit -= logit.mean()
    summed = np.zeros(high * wide)
    for y in range(SIDE):
        for x in range(SIDE):
            # Cells on a border go to the earlier crop.
            cy, cx = math.ceil((y + 0.5) / SIDE * high - 1e-9) - 1, math.ceil((x + 0.5) / SIDE * wide - 1e-9) - 1
            summed[cy * wide + cx] += logit[y, x]
    part = np.exp(summed / temperature) / np.exp(summed / temperature).sum()
    weight = [float(held[0]), *(h * (1 + p - 1 / len(part)) for h, p in zip(held[1:-1], part, strict=True)), 0.0]
    total = torch.full((len(a),), -math.inf, dtype=torch.float64)
    total[parts[0]] = a[parts[0]]
    for g in range(high * wide):
        top, left = g // wide * SIDE, g % wide * SIDE
        there = resized[top : top + SIDE, left : left + SIDE].flatten()
        own = a[parts[g + 1]]
        total[parts[g + 1]] = own / own.norm() + there / there.norm()
    total[parts[-1]] = a[parts[-1]]
    count = shares(keep, weight, held)
    return each_best(total, count, parts)


@pytest.mark.parametrize("keep", [1, 9, 30, 60])
def test_globalcom2(keep):
    layouts = [(2, 2), (1, 2), (4, 1), (1, 1), (0, 0)]
    x, given = pictures(layouts)
    r = ts.reduce(x, "globalcom2", keep, **without(given, "keys"))
    want = [
        globalcom2(crop, *layouts[b], valid, a[-2], k) if k < len(valid) else valid
        for b, (crop, _, valid, a, _, k) in enumerate(every_row(x, given, keep))
    ]
    assert kept(r) == want


# ---- Token-Correlation Compression: arXiv 2407.14439


def token_correlation(crop, valid, a, keys, noise, keep, alike, often):
    parts = by_crop(crop, valid)
    u = unit(keys)
    weight = []
    for p in parts:
        redundant = [sum(float(u[i] @ u[j]) > alike for j in p) > often * len(p) for i in p]
        weight.append(float(len(p) - sum(redundant)))
    weight[-1] = 0.0
    # The first of the clocks to ring, each running at its token's rate: draws without replacement.
    rings = {i: -math.log(max(float(noise[i]), 1e-38)) / max(float(a[i]), 1e-38) for i in valid}
    count = shares(keep, weight, [len(p) for p in parts])
    return each_best({i: -t for i, t in rings.items()}, count, parts)


@pytest.mark.parametrize(("alike", "often"), [(0.5, 0.1), (0.2, 0.3), (-1.0, 0.1)])
@pytest.mark.parametrize("keep", [1, 9, 30, 60])
def test_token_correlation(keep, alike, often):
    x, given = pictures()
    made = get_method("token-correlation", cosine_threshold=alike, often=often)
    r = ts.reduce(x, made, keep, **given)
    noise = ts.Signals(features=x, mask=given["mask"]).noise()
    want = [
        token_correlation(crop, valid, a[-2], keys, noise[b], k, alike, often) if k < len(valid) else valid
        for b, (crop, _, valid, a, keys, k) in enumerate(every_row(x, given, keep))
    ]
    assert kept(r) == want


def test_blank_crops_leave_their_budget_to_dense_ones():
    """Keys of a blank crop are all alike; the more of a crop is covered with something, the more it may keep."""
    x, given = pictures([(2, 2)])
    keys, crop = given["keys"].clone(), given["crop"]
    for g, blank in ((0, 16), (1, 16), (2, 12), (3, 6), (4, 0)):
        place = (crop[0] == g).nonzero()[:blank, 0]
        keys[0, place] = 1.0
    r = ts.reduce(x, "token-correlation", 20, **given | {"keys": keys})
    count = torch.bincount(crop[0, r.kept[0]], minlength=5).tolist()
    assert count[:2] == [0, 0]
    assert 0 < count[2] < count[3] < count[4]


def test_draws_follow_their_weights():
    """Over many noises a token of twice the weight comes first about twice as often."""
    noise = torch.rand(20000, 3, generator=torch.Generator().manual_seed(0))
    first = select.drawn(torch.tensor([[0.5, 0.25, 0.25]]).expand(20000, -1), noise).argmax(1)
    share = torch.bincount(first, minlength=3) / 20000
    torch.testing.assert_close(share, torch.tensor([0.5, 0.25, 0.25]), atol=0.015, rtol=0)


# ---- all methods on crops


@pytest.mark.parametrize("name", CROPPED)
@pytest.mark.parametrize("keep", [1, 5, 20, 0.25, 0.9])
def test_crops_share_an_exact_budget(name, keep):
    x, given = pictures()
    r = ts.reduce(x, name, keep, **given)
    held = given["mask"].sum(1)
    want = held.clamp(max=keep) if isinstance(keep, int) else (held * keep + 0.5).long()
    assert torch.equal(r.counts, want)


@pytest.mark.parametrize("name", CROPPED)
@pytest.mark.parametrize("keep", [3, 30])
def test_pictures_of_a_batch_do_not_meet(name, keep):
    """Alone and without padding, every picture keeps what it keeps in the batch, whatever crops its neighbours have."""
    x, given = pictures()
    together = kept(ts.reduce(x, name, keep, **given))
    for b in range(len(x)):
        place = given["mask"][b].nonzero()[:, 0]
        alone = ts.reduce(x[b : b + 1, place], name, keep, **rows_of(given, b, place))
        assert place[alone.kept[0]].tolist() == together[b]


@pytest.mark.parametrize("name", CROPPED)
def test_a_picture_in_one_is_ranked_as_a_whole(name):
    x, given = features(2, 36), {"cls_attention": attention(2, 3, 36), "keys": features(2, 36, 8)}
    with_crop = ts.reduce(x, name, 9, crop=torch.zeros(2, 36, dtype=torch.long), grid=(6, 6), **given)
    plain = ts.reduce(x, name, 9, **given)
    assert torch.equal(with_crop.kept, plain.kept)
    if name != "token-correlation":
        assert torch.equal(plain.kept, ts.reduce(x, "fastervlm", 9, **given).kept)


@pytest.mark.parametrize("name", ["hired", "globalcom2"])
def test_crops_need_to_lie_somewhere(name):
    x, given = pictures()
    with pytest.raises(ts.MissingSignal, match=r"pass spot=s with s of shape \(B, N, 2\)"):
        ts.reduce(x, name, 9, **without(given, "spot"))
