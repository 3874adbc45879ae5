"""Parts: selections, cells, merges and budgets on their own."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import avg_pool2d, normalize

import tokensieve as ts
from tokensieve.core.needs import Need
from tokensieve.parts import budget, merge, score, select
from tokensieve.parts.budget import Keep
from tokensieve.parts.select import distance
from tokensieve.testing import Largest, features

settings.register_profile("quick", max_examples=60, deadline=None, derandomize=True)
settings.load_profile("quick")


@st.composite
def selections(draw):
    """Candidates and counts for a few rows of one length."""
    n, b = draw(st.integers(1, 24)), draw(st.integers(1, 4))
    candidates = torch.tensor(draw(st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=b, max_size=b)))
    count = torch.tensor(draw(st.lists(st.integers(0, n + 2), min_size=b, max_size=b)))
    return candidates, count


# ---- select


@given(selections(), st.integers(0, 99))
def test_selections_take_what_is_asked_from_the_candidates(drawn, seed):
    candidates, count = drawn
    x = features(*candidates.shape, 4, seed=seed)
    want = count.minimum(candidates.sum(1))
    for chosen in (
        select.top(x[..., 0], count, candidates),
        select.evenly(count, candidates),
        select.strided(count, candidates),
        distance.farthest(x, count, candidates),
        distance.density_peaks(x, count, candidates),
    ):
        assert not bool((chosen & ~candidates).any())
        assert torch.equal(chosen.sum(1), want)


def test_top_breaks_ties_by_position_and_bears_infinities():
    candidates = torch.tensor([[False, True, True, True, True]])
    flat = torch.zeros(1, 5)
    assert select.top(flat, torch.tensor([2]), candidates).tolist() == [[False, True, True, False, False]]
    assert select.top(flat - math.inf, torch.tensor([2]), candidates).tolist() == [[False, True, True, False, False]]


def test_ranked_is_best_first():
    place, real = select.ranked(
        torch.tensor([[1.0, 3.0, 2.0], [5.0, 4.0, 6.0]]), torch.tensor([3, 1]), torch.ones(2, 3, dtype=torch.bool)
    )
    assert place[0].tolist() == [1, 2, 0]
    assert int(place[1, 0]) == 2
    assert real.tolist() == [[True, True, True], [True, False, False]]


@given(st.integers(1, 60), st.integers(1, 60))
def test_evenly_leaves_even_gaps(n, k):
    k = min(n, k)
    chosen = select.evenly(torch.tensor([k]), torch.ones(1, n, dtype=torch.bool))[0].nonzero()[:, 0]
    gaps = chosen.diff()
    assert int(chosen[0]) == 0
    assert not len(gaps) or int(gaps.max()) - int(gaps.min()) <= 1


@given(st.integers(1, 14), st.integers(1, 14), st.integers(1, 196))
def test_cells_hit_any_budget_with_near_equal_boxes(h, w, k):
    k = min(k, h * w)
    valid = torch.ones(2, h * w, dtype=torch.bool)
    centres, target = select.cells(torch.tensor([k, 1]), valid, (h, w))
    assert centres.sum(1).tolist() == [k, 1]
    assert torch.equal(centres[0].nonzero()[:, 0], target[0].unique())
    bands: dict[tuple[int, int], list[int]] = {}
    for centre in target[0].unique().tolist():
        member = (target[0] == centre).nonzero()[:, 0]
        y, x = member // w, member % w
        top, left, height, width = int(y.min()), int(x.min()), int(y.max() - y.min()) + 1, int(x.max() - x.min()) + 1
        assert height * width == len(member)
        assert (centre // w, centre % w) == (top + (height - 1) // 2, left + (width - 1) // 2)
        bands.setdefault((top, height), []).append(width)
    assert sum(height for _, height in bands) == h
    heights, numbers = [height for _, height in bands], [len(v) for v in bands.values()]
    assert max(heights) - min(heights) <= 1
    assert max(numbers) - min(numbers) <= 1
    assert all(max(v) - min(v) <= 1 for v in bands.values())


@given(st.lists(st.booleans(), min_size=1, max_size=30).filter(any), st.integers(1, 30))
def test_cells_of_a_padded_row_run_along_it(valid, k):
    mask = torch.tensor([valid, [True] * len(valid)])
    centres, target = select.cells(torch.tensor([k, k]), mask, (1, len(valid)))
    held = sum(valid)
    assert int(centres[0].sum()) == min(k, held)
    assert torch.equal(target[0] >= 0, mask[0])
    sizes = target[0][mask[0]].unique(return_counts=True)[1]
    assert int(sizes.max() - sizes.min()) <= 1
    assert torch.equal(target[0][centres[0]], centres[0].nonzero()[:, 0])


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 1600), st.sampled_from(["uniform", "pool"]))
def test_baselines_hit_any_budget(h, w, k, name):
    r = ts.reduce(features(1, h * w, 2), name, k, grid=(h, w))
    assert r.m == min(k, h * w)


def test_pool_is_average_pooling():
    x = features(2, 576, 8)
    image = x.transpose(1, 2).unflatten(2, (24, 24))
    for keep, size in ((64, 3), (144, 2), (36, 4), (1, 24)):
        want = avg_pool2d(image, size).flatten(2).transpose(1, 2)
        torch.testing.assert_close(ts.reduce(x, "pool", keep, grid=(24, 24)).apply(x), want, rtol=1e-5, atol=1e-6)
    r = ts.reduce(x, "pool", 64, grid=(24, 24))
    assert r.kept[0, :3].tolist() == [25, 28, 31]
    assert torch.equal(r.kept, ts.reduce(x, "uniform", 64, grid=(24, 24)).kept)


def test_around_stops_at_the_edges():
    chosen = torch.zeros(1, 12, dtype=torch.bool)
    chosen[0, [3, 4]] = True
    every = torch.ones_like(chosen)
    assert select.around(chosen, (3, 4), every)[0].nonzero()[:, 0].tolist() == [0, 2, 5, 7, 8]
    assert select.around(chosen, None, every)[0].nonzero()[:, 0].tolist() == [2, 5]
    every[0, 5] = False  # padding between tokens is as if it were not there
    assert select.around(chosen, None, every)[0].nonzero()[:, 0].tolist() == [2, 6]


def test_farthest_needs_no_square_matrix():
    n = 20_000
    with Largest() as seen:
        chosen = distance.farthest(features(1, n, 4), torch.tensor([50]), torch.ones(1, n, dtype=torch.bool))
    assert int(chosen.sum()) == 50
    assert seen.elements <= distance.ROWS * n
    assert seen.elements * 4 * 4 < 1e9


# ---- merge


def test_nearest_in_blocks_and_without_anchors(monkeypatch):
    x = features(2, 50, 6)
    candidates = torch.zeros(2, 50, dtype=torch.bool)
    candidates[0, [3, 20, 41]] = True
    monkeypatch.setattr(merge, "HELD", 1)
    index, like = merge.nearest(x, candidates)
    u = normalize(x[0], dim=-1)
    value, slot = (u @ u[[3, 20, 41]].T).max(1)
    torch.testing.assert_close(like[0], value)
    assert index[0].tolist() == torch.tensor([3, 20, 41])[slot].tolist()
    assert bool((index[1] == -1).all())
    index, _ = merge.nearest(x, candidates, euclidean=True)
    assert index[0].tolist() == torch.tensor([3, 20, 41])[torch.cdist(x[0], x[0, [3, 20, 41]]).argmin(1)].tolist()


def test_density_peaks_finds_clusters():
    """Three tight groups and a centre for each, in blocks smaller than the row."""
    x = torch.eye(3, 8).repeat_interleave(20, 0)[None] * 10 + 0.1 * features(1, 60, 8)
    every = torch.ones(1, 60, dtype=torch.bool)
    chosen = distance.density_peaks(x, torch.tensor([3]), every)
    assert sorted((chosen[0].nonzero()[:, 0] // 20).tolist()) == [0, 1, 2]


def test_density_peaks_in_blocks(monkeypatch):
    x, count = features(3, 70, 5), torch.tensor([2, 9, 30])
    candidates = torch.rand(3, 70, generator=torch.Generator().manual_seed(1)) < 0.8
    whole = distance.density_peaks(x, count, candidates)
    monkeypatch.setattr(distance, "ROWS", 16)
    assert torch.equal(distance.density_peaks(x, count, candidates), whole)
    assert torch.equal(distance.farthest(x, count, candidates), _at(512, x, count, candidates, monkeypatch))


def _at(rows, x, count, candidates, monkeypatch):
    monkeypatch.setattr(distance, "ROWS", rows)
    return distance.farthest(x, count, candidates)


# ---- budget


@given(st.integers(1, 400), st.data())
def test_recycle_spends_what_it_has(held, data):
    keep = data.draw(st.integers(1, held))
    plain, again = (int(t) for t in budget.recycle(torch.tensor([keep]), torch.tensor([held]), 0.3, 10))
    clusters = keep - plain
    assert 0 < plain <= keep
    assert plain >= keep / 2
    assert clusters <= again <= held - plain


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.integers(0, 50))
def test_split_is_even_and_complete(parts, total):
    given_ = budget.split(torch.tensor([total]), torch.tensor([parts]))[0]
    used = [int(v) for v, p in zip(given_, parts, strict=True) if p]
    assert int(given_.sum()) == (total if any(parts) else 0)
    assert not used or max(used) - min(used) <= 1


def test_rank_counts_redundancy():
    rows = torch.zeros(2, 5, 12)
    rows[0] = features(1, 5, 2)[0] @ features(1, 2, 12)[0]
    rows[1, :, :9] = features(1, 5, 9)[0]
    assert budget.rank(rows, torch.tensor([12, 9]), 1.0).tolist() == [2, 5]
    assert budget.rank(rows, torch.tensor([12, 9]), 0.5).tolist() == [7, 7]


def test_counts():
    valid = torch.tensor([[True] * 10, [True] * 3 + [False] * 7])
    assert budget.counts(4, valid).tolist() == [4, 3]
    assert budget.counts(0.25, valid).tolist() == [3, 1]
    assert budget.counts(Keep(share=0.01), valid).tolist() == [1, 1]
    assert budget.counts(Keep(tokens=2), valid).tolist() == [2, 2]
    with pytest.raises(ValueError, match="layers"):
        budget.counts(Keep(flops=0.5), valid)


@pytest.mark.parametrize(
    "bad", [{}, {"tokens": 3, "share": 0.5}, {"tokens": 2.0}, {"share": 1.5}, {"flops": 0}, {"tokens": 1, "per": "row"}]
)
def test_keep_refuses(bad):
    with pytest.raises(ValueError, match=r"tokens|share|flops|per"):
        Keep(**bad)


# ---- score


def test_text_rows_and_their_stand_ins():
    x, text = features(1, 6, 4), features(1, 3, 4, seed=1)
    s = ts.Signals(features=x, text=text, mask=torch.tensor([[True] * 5 + [False]]))
    rows, real = score.text_rows(s, Need("text_attention", instead=("text",)))
    want = (text @ x[:, :5].transpose(1, 2) / 2).softmax(-1)
    torch.testing.assert_close(rows[..., :5], want)
    assert not bool(rows[..., 5].any())
    assert bool(real.all())
    torch.testing.assert_close(score.last_row(rows, torch.tensor([[True, True, False]])), rows[:, 1])
    torch.testing.assert_close(score.mean_row(rows, torch.tensor([[True, False, True]])), rows[:, [0, 2]].mean(1))


def test_there_is_always_a_rater():
    """Equal relevances, and a single word."""
    x, valid = features(2, 5, 4), torch.ones(2, 5, dtype=torch.bool)
    alike = torch.ones(2, 3, 4)
    assert bool(score.raters(alike, torch.ones(2, 3, dtype=torch.bool), x, valid).all())
    one = torch.tensor([[False, True, False], [True, False, False]])
    assert torch.equal(score.raters(features(2, 3, 4), one, x, valid), one)


@given(st.integers(0, 40), st.lists(st.tuples(st.floats(0, 5), st.integers(0, 9)), min_size=1, max_size=6))
def test_allot_shares_out_exactly_by_weight_and_never_overfills(total, groups):
    weight = torch.tensor([[w for w, _ in groups]])
    most = torch.tensor([[m for _, m in groups]])
    got = budget.allot(torch.tensor([total]), weight, most)
    assert int(got.sum()) == min(total, int(most.sum()))
    assert bool((got <= most).all())
    assert bool((got >= 0).all())
    for (w, m), n in zip(groups, got[0].tolist(), strict=True):
        for (v, _), k in zip(groups, got[0].tolist(), strict=True):
            if w >= v and n < m:  # a group that is not full has no less than a lighter one, but for a remainder
                assert n >= k - 1


def test_allot_gives_what_a_full_group_cannot_take_to_the_others():
    got = budget.allot(torch.tensor([10]), torch.tensor([[8.0, 1.0, 1.0, 0.0]]), torch.tensor([[4, 9, 9, 9]]))
    assert got.tolist() == [[4, 3, 3, 0]]


def test_top_of_each_takes_the_best_of_every_group():
    generator = torch.Generator().manual_seed(3)
    score, group = torch.rand(4, 20, generator=generator), torch.randint(-1, 3, (4, 20), generator=generator)
    candidates, count = torch.rand(4, 20, generator=generator) > 0.2, torch.tensor([[2, 0, 3]]).expand(4, -1)
    got = select.top_of_each(score, count, group, candidates)
    for b in range(4):
        want = set()
        for g in range(3):
            mine = [i for i in range(20) if group[b, i] == g and candidates[b, i]]
            want |= set(sorted(mine, key=lambda i: -float(score[b, i]))[: int(count[b, g])])
        assert set(got[b].nonzero()[:, 0].tolist()) == want


def test_budgets_may_be_numpy_numbers():
    import numpy as np

    valid = torch.ones(1, 8, dtype=torch.bool)
    assert budget.counts(np.int64(3), valid).tolist() == [3]
    assert budget.counts(np.float32(0.5), valid).tolist() == [4]
    assert ts.Plan(ts.stage("random", np.int64(3))).to_json()["stages"][0]["keep"] == 3
    with pytest.raises(ValueError, match="keep="):
        budget.counts(np.int64(0), valid)


@pytest.mark.parametrize("width", [5, 1024, 1056, 2000])
def test_the_highest_is_found_stretch_by_stretch(width):
    """Among equal ones the first, whatever stretch it is in."""
    x = torch.randint(0, 40, (2, 7, width), generator=torch.Generator().manual_seed(width)).float()
    value, index = merge._highest(x)
    assert value.tolist() == x.amax(-1).tolist()
    assert index.tolist() == [[row.index(max(row)) for row in rows] for rows in x.tolist()]


@pytest.mark.parametrize("twins", [False, True])
def test_only_some_ask_for_the_nearest(twins):
    g = torch.Generator().manual_seed(5)
    x = torch.randn(2, 2300, 6, generator=g)
    if twins:
        x[:, 1::2] = x[:, ::2]
    among, asked = (torch.rand(2, 2300, generator=g) < share for share in (0.6, 0.2))
    index, like = merge.nearest(x, among)
    some, same = merge.nearest(x, among, asked=asked)
    assert torch.equal(some[asked], index[asked])
    assert torch.allclose(same[asked], like[asked], atol=1e-6)
    unit = torch.nn.functional.normalize(x.double(), dim=-1)
    want = (unit @ unit.transpose(1, 2)).masked_fill(~among[:, None], -torch.inf).amax(-1)
    assert torch.allclose(like.double(), want, atol=1e-5)
