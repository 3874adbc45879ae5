"""Methods that keep a diverse or covering set, against plain loops written from their definitions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tokensieve as ts
from tests.models import llava, prompt
from tests.test_parity_vlm import attention, best, kept, unit
from tokensieve.core.method_registry import get_method
from tokensieve.parts.merge import cluster
from tokensieve.parts.numeric import similarity as cosines
from tokensieve.parts.select import coverage, dpp, groups
from tokensieve.testing import Largest, features

SIZES = [(1, 2, 1), (2, 7, 3), (3, 40, 13), (2, 100, 33)]


@pytest.fixture(params=["held", "computed"])
def pairs(request, monkeypatch):
    """Pairs held at once, and pairs computed when they are needed."""
    if request.param == "computed":
        monkeypatch.setattr(cosines, "HELD", 0)


def crowd(batch, n, dim=24, seed=0):
    """Tokens around a few directions: many resemble each other."""
    few = features(batch, 6, dim, seed=seed).repeat(1, -(-n // 6), 1)[:, :n]
    return few + 0.5 * features(batch, n, dim, seed=seed + 1)


def mask_of(chosen, n):
    return torch.tensor([[i in row for i in range(n)] for row in chosen])


def facility(cover, keep, scale=None):
    """Plain greedy on a table of how well candidate i covers target r, cover[r][i]."""
    targets, n = cover.shape
    best_of, chosen = np.zeros(targets), []
    for _ in range(keep):
        gain = [np.maximum(cover[:, i] - best_of, 0).sum() * (1 if scale is None else scale[i]) for i in range(n)]
        chosen.append(max((i for i in range(n) if i not in chosen), key=lambda i: (gain[i], -i)))
        best_of = np.maximum(best_of, cover[:, chosen[-1]])
    return sorted(chosen)


# ---- SCOPE: arXiv 2510.24214


@pytest.mark.parametrize("alpha", [1.0, 0.5, 2.5])
@pytest.mark.parametrize(("batch", "n", "keep"), [*SIZES, (1, 180, 150), (1, 600, 30)])
@pytest.mark.parametrize("tokens", [features, crowd])
@pytest.mark.usefixtures("pairs")
def test_scope(batch, n, keep, alpha, tokens):
    x, a = tokens(batch, n, 12, seed=n), attention(batch, 4, n)
    want = []
    for b in range(batch):
        u = unit(x[b])
        want.append(facility(u @ u.T, keep, np.asarray(a[b].double().mean(0)) ** alpha))
    assert kept(ts.reduce(x, get_method("scope", alpha=alpha), keep, cls_attention=a)) == want


# ---- MMTok: arXiv 2508.18264


def mmtok_table(x, text, text_temperature=0.02, temperature=0.2, alpha=0.5):
    x, text = unit(x), unit(text)
    rows = []
    for targets, heat, weight in ((x, temperature, alpha), (text, text_temperature, 1.0)):
        for target in targets:
            e = [math.exp(float(target @ other) / heat) for other in x]
            rows.append([weight * value / sum(e) / len(targets) for value in e])
    return np.array(rows)


@pytest.mark.parametrize(("batch", "n", "keep"), [*SIZES, (1, 180, 150), (1, 600, 30)])
@pytest.mark.usefixtures("pairs")
def test_mmtok(batch, n, keep):
    x, text = crowd(batch, n, seed=n), features(batch, 5, 24, seed=3)
    mask = torch.tensor([[False, True, True, True, True]]).expand(batch, 5)
    want = [facility(mmtok_table(x[b], text[b, 1:]), keep) for b in range(batch)]
    assert kept(ts.reduce(x, "mmtok", keep, text=text, text_mask=mask)) == want


@pytest.mark.parametrize("seed", range(5))
def test_mmtok_reaches_its_share_of_the_optimum(seed):
    x, text, keep = crowd(1, 10, seed=seed), features(1, 3, 24, seed=seed + 50), 3
    method, s = get_method("mmtok"), ts.Signals(features=x, text=text)

    def value(chosen):
        return float(method.objective(s, mask_of([chosen], 10)))

    table = mmtok_table(x[0], text[0])
    assert value([1, 5, 7]) == pytest.approx(table[:, [1, 5, 7]].max(1).sum(), rel=1e-5)
    assert value(range(10)) <= 1.5
    optimum = max(map(value, itertools.combinations(range(10), keep)))
    greedy = value(kept(ts.reduce(x, method, keep, text=text))[0])
    assert (1 - 1 / math.e) * optimum < greedy <= optimum + 1e-6


def test_mmtok_covers_the_text():
    """With the visual term off, a kept token is one that a text token points at."""
    x = features(1, 30, 16)
    r = ts.reduce(x, get_method("mmtok", alpha=0.0), 2, text=x[:, [4, 21]] + 0.01)
    assert kept(r) == [[4, 21]]


@given(st.integers(2, 30), st.integers(1, 30), st.integers(0, 99))
def test_lazy_coverage_is_the_plain_greedy_rule(n, keep, seed):
    """Also with ties: coverage in whole numbers."""
    table = (4 * features(2, n, 9, seed=seed)).round()
    candidates = torch.rand(2, n, generator=torch.Generator().manual_seed(seed)) < 0.8
    candidates[:, 0] = True
    chosen = coverage.cover(
        lambda place: table.gather(1, place[..., None].expand(-1, -1, 9)), torch.tensor([keep, 1]), candidates
    )
    for b, count in enumerate((keep, 1)):
        place = candidates[b].nonzero()[:, 0]
        want = facility(table[b, place].numpy().T, min(count, len(place)))
        assert chosen[b].nonzero()[:, 0].tolist() == place[want].tolist()


# ---- CDPruner: arXiv 2506.10967


def cdpruner(x, relevance, keep):
    r = np.asarray(relevance, dtype=np.float64)
    r = (r - r.min() + 1e-6) / (r.max() - r.min())
    kernel = r[:, None] * (unit(x) @ unit(x).T) * r
    chosen = []
    while len(chosen) < keep:
        rest = [i for i in range(len(r)) if i not in chosen]
        volume = {i: np.linalg.slogdet(kernel[np.ix_([*chosen, i], [*chosen, i])])[1] for i in rest}
        chosen.append(max(rest, key=lambda i: (volume[i], -i)))
    return sorted(chosen)


@pytest.mark.parametrize(("batch", "n", "keep"), [*SIZES, (2, 130, 80)])
def test_cdpruner(batch, n, keep):
    x, r = crowd(batch, n, 96, seed=n), features(batch, n, 1, seed=4)[..., 0]
    want = [cdpruner(x[b], r[b], keep) for b in range(batch)]
    assert kept(ts.reduce(x, "cdpruner", keep, relevance=r)) == want
    rows = torch.stack([r - 1, r + 1], 1)
    assert kept(ts.reduce(x, "cdpruner", keep, relevance=rows)) == want


def test_cdpruner_from_text():
    x, text = features(2, 40, 32), features(2, 3, 32, seed=1)
    r = [(unit(x[b]) @ unit(text[b]).T).mean(1) for b in range(2)]
    assert kept(ts.reduce(x, "cdpruner", 9, text=text)) == [cdpruner(x[b], r[b], 9) for b in range(2)]


def test_cdpruner_scales_relevance_within_a_row():
    x, r = features(2, 40, 32), features(2, 40, 1, seed=4)[..., 0]
    alone = kept(ts.reduce(x[:1], "cdpruner", 9, relevance=r[:1]))
    for factor in (1, 100):
        both = torch.stack([r[0], factor * r[1]])
        assert kept(ts.reduce(x, "cdpruner", 9, relevance=both))[0] == alone[0]


def test_what_is_spanned_already_comes_last_and_by_length():
    """Three directions: once each is taken, nothing new is left, and the longest vectors follow."""
    axis = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    length = torch.tensor([9.0, 8.0, 1.0, 5.0, 7.0, 0.5, 3.0, 2.0])
    vector = (torch.eye(3)[axis] * length[:, None])[None]
    for count, want in ((3, [0, 1, 2]), (4, [0, 1, 2, 4]), (6, [0, 1, 2, 3, 4, 6])):
        chosen = dpp.most_likely(vector, torch.tensor([count]), torch.ones(1, 8, dtype=torch.bool))
        assert chosen[0].nonzero()[:, 0].tolist() == want


# ---- G-Prune: arXiv 2501.02268


def gprune(x, keep, similarity=0.5, temperature=0.03, steps=5):
    like = unit(x) @ unit(x).T
    edge = like >= similarity
    weight = np.where(edge, np.exp((like - 1) / temperature), 0)
    weight = np.linalg.matrix_power(weight / weight.sum(1, keepdims=True), steps)
    score = np.linalg.norm(np.asarray(x, dtype=np.float64), axis=1) @ weight / edge.sum(1)
    return sorted(best(score, keep, range(len(x))))


@pytest.mark.parametrize(("batch", "n", "keep"), [*SIZES, (1, 600, 64)])
@pytest.mark.usefixtures("pairs")
def test_gprune(batch, n, keep):
    x = crowd(batch, n, seed=n)
    want = [gprune(x[b], keep) for b in range(batch)]
    assert kept(ts.reduce(x, "g-prune", keep)) == want


def test_gprune_prunes_thumbnail_and_crops_apart():
    x, crop = crowd(2, 50, seed=1), torch.cat([torch.zeros(2, 20), torch.ones(2, 18), torch.full((2, 12), 2.0)], 1)
    r = ts.reduce(x, "g-prune", 10, crop=crop.long())
    want = [[*gprune(row[:20], 4), *(20 + i for i in gprune(row[20:], 6))] for row in x]
    assert kept(r) == want


def test_importance_that_flows_leaves_out_padding():
    x, mask = crowd(1, 40, seed=3), torch.arange(40)[None] % 4 > 0
    place = mask[0].nonzero()[:, 0]
    alone = get_method("g-prune").score(ts.Signals(features=x[:, place]))
    torch.testing.assert_close(get_method("g-prune").score(ts.Signals(features=x, mask=mask))[:, place], alone)


# ---- Cluster-level aggregation: arXiv 2504.17892


def kmeans(x, keep, steps):
    """Labels of k-means from centres at equal steps; an empty cluster takes the token farthest from its centre."""
    x = np.asarray(x, dtype=np.float64)
    centre = x[[math.ceil(t * len(x) / keep) for t in range(keep)]]
    label = None
    for _ in range(steps):
        far = np.linalg.norm(x[:, None] - centre[None], axis=2)
        new = far.argmin(1)
        own = far[np.arange(len(x)), new]
        members = {k: np.flatnonzero(new == k) for k in range(keep)}
        lead = {k: m[np.flatnonzero(own[m] <= own[m].min() + 1e-6)[0]] for k, m in members.items() if len(m)}
        empty = [k for k in range(keep) if not len(members[k])]
        moved = sorted(best(own, len(empty), set(range(len(x))) - set(lead.values())))
        for k, i in zip(empty, moved, strict=True):
            new[i], lead[k] = k, i
        if label is not None and (new == label).all():
            break
        label = new
        centre = np.stack([x[label == k].mean(0) for k in range(keep)])
    return label, lead


@pytest.mark.parametrize("steps", [1, 3, 10])
@pytest.mark.parametrize(("batch", "n", "keep"), [*SIZES, (1, 180, 150)])
def test_cluster_aggregation(batch, n, keep, steps):
    x = crowd(batch, n, 12, seed=n)
    r = ts.reduce(x, get_method("cluster-aggregation", steps=steps), keep)
    for b in range(batch):
        label, lead = kmeans(x[b], keep, steps)
        assert r.kept[b].tolist() == sorted(lead.values())
        order = sorted(range(keep), key=lambda k: lead[k])
        assert r.owner[b].tolist() == [order.index(k) for k in label]
        want = torch.stack([x[b, torch.from_numpy(label == k)].mean(0) for k in order])
        torch.testing.assert_close(r.apply(x)[b], want)


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 99))
def test_no_cluster_is_empty(n, keep, seed):
    """Few places with many tokens each, and more clusters than places."""
    x = features(1, 3, 4, seed=seed)[:, torch.arange(n) % 3]
    candidates = torch.ones(1, n, dtype=torch.bool)
    chosen, target = cluster.means(x, torch.tensor([min(n, keep)]), candidates, 5)
    assert int(chosen.sum()) == min(n, keep)
    assert target.unique().tolist() == chosen[0].nonzero()[:, 0].tolist()


def test_clusters_of_clear_groups_are_these_groups():
    x = torch.cat([features(1, 8, 5, seed=i) * 0.01 + 10 * features(1, 1, 5, seed=70 + i) for i in range(4)], 1)
    r = ts.reduce(x, "cluster-aggregation", 4)
    assert r.owner.tolist() == [[i // 8 for i in range(32)]]


# ---- HoloV: arXiv 2510.02912


def holov(x, a, crops, keep, alpha):
    """Tokens of each crop, its weight, its share of the budget, its most attended tokens."""
    u, a = unit(x), np.asarray(a, dtype=np.float64)
    spread = np.zeros(len(x))
    for crop in crops:
        for i in crop:
            like = [float(u[i] @ u[j]) for j in crop if j != i]
            spread[i] = np.var(like) if like else 0.0
    value = a / a.mean() + alpha * spread / spread.mean()
    weight = np.array([value[crop].mean() for crop in crops])
    want = keep * weight / weight.sum()
    quota = np.floor(want + 1e-9).astype(int)
    for g in best(want - quota, keep - quota.sum(), range(len(crops))):
        quota[g] += 1
    assert all(q <= len(crop) for q, crop in zip(quota, crops, strict=True))
    return sorted(i for q, crop in zip(quota, crops, strict=True) for i in best(a, q, crop))


@pytest.mark.parametrize("n", [1, 2, 90, 700])
def test_variety(n):
    """Groups of any size, one of a single token and one of none, and more members than a block holds."""
    x, candidates = crowd(2, n, seed=n), torch.ones(2, n, dtype=torch.bool)
    candidates[1, 3::5] = False
    group = torch.arange(n).expand(2, -1) % 7 // 3
    group = torch.where(torch.arange(n) == n - 1, 4, group)
    got = groups.variety(x, group, 5, candidates)
    for b in range(2):
        u = unit(x[b])
        for i in range(0, n, 1 + n // 50):
            mates = [
                j for j in range(n) if j != i and group[b, j] == group[b, i] and candidates[b, i] and candidates[b, j]
            ]
            want = np.var([u[i] @ u[j] for j in mates]) if mates else 0.0
            assert float(got[b, i]) == pytest.approx(want, abs=1e-5)


def test_variety_works_in_blocks():
    x, one = features(1, 3000, 4), torch.ones(1, 3000, dtype=torch.bool)
    with Largest() as seen:
        groups.variety(x, torch.zeros(1, 3000, dtype=torch.long), 1, one)
    assert seen.elements <= groups.ROWS * 3000


@pytest.mark.parametrize("alpha", [0.09, 1.0])
@pytest.mark.parametrize(("side", "keep"), [(8, 10), (12, 40), (24, 64), (24, 192)])
def test_holov(side, keep, alpha):
    n, step = side * side, side // 4
    x, a = crowd(2, n, seed=side), attention(2, 4, n)
    crops = [
        [y * side + x for y in range(top, top + step) for x in range(left, left + step)]
        for top in range(0, side, step)
        for left in range(0, side, step)
    ]
    want = [holov(x[b], a[b].double().mean(0), crops, keep, alpha) for b in range(2)]
    assert kept(ts.reduce(x, get_method("holov", alpha=alpha), keep, cls_attention=a, grid=(side, side))) == want


def test_holov_shares_out_what_a_crop_cannot_hold():
    """All attention in one crop of four tokens: it is kept whole, and the rest of the budget goes elsewhere."""
    a = torch.full((1, 64), 1e-6)
    a[0, [0, 1, 8, 9]] = 1.0
    r = ts.reduce(features(1, 64), "holov", 20, cls_attention=a, grid=(8, 8))
    assert r.counts.tolist() == [20]
    assert {0, 1, 8, 9} <= set(kept(r)[0])


# ---- ToDRE: arXiv 2505.18757


def kcenter(x, first, keep):
    u, chosen = unit(x), [first]
    while len(chosen) < keep:
        rest = [i for i in range(len(u)) if i not in chosen]
        chosen.append(min(rest, key=lambda i: (max(float(u[i] @ u[j]) for j in chosen), i)))
    return sorted(chosen)


@pytest.mark.parametrize(("batch", "n", "keep"), [*SIZES, (2, 100, 99)])
@pytest.mark.parametrize("tokens", [features, crowd])
def test_todre(batch, n, keep, tokens):
    x, a = tokens(batch, n, 12, seed=n), attention(batch, 4, n)
    want = [kcenter(x[b], int(a[b].mean(0).argmax()), keep) for b in range(batch)]
    assert kept(ts.reduce(x, "todre", keep, cls_attention=a)) == want


def test_todre_covers_better_than_attention():
    x, a = crowd(1, 300, seed=3), attention(1, 4, 300)

    def radius(name):
        u = unit(x[0])
        return (1 - u @ u[kept(ts.reduce(x, name, 30, cls_attention=a))[0]].T).min(1).max()

    assert radius("todre") < radius("fastervlm")


def test_todre_late_removes_all_but_one_token_where_attention_has_faded():
    a = attention(3, 2, 5, 30) * torch.tensor([0.05, 0.2, 0.09])[:, None, None, None]
    r = ts.reduce(features(3, 30), "todre-late", 9, text_attention=a)
    assert r.counts.tolist() == [1, 9, 1]
    assert kept(r) == [sorted(best(a[b].mean((0, 1)), count, range(30))) for b, count in enumerate((1, 9, 1))]


@pytest.mark.parametrize("keep", [32, 0.5])
def test_todre_as_a_system_holds_the_mean(keep):
    model, inputs = llava(), prompt((1, 1))
    with ts.sieve(model, "todre", keep=keep) as s:
        model(**inputs)
    first, *_, last = s.last.layer_tokens
    assert first >= 32 >= last
    assert sum(s.last.layer_tokens) / len(s.last.layer_tokens) <= 32


# ---- GreedyPrune: arXiv 2506.13166


def greedyprune(x, saliency, keep, similarity, penalty):
    u, chosen = unit(x), []
    while len(chosen) < keep:
        rest = [i for i in range(len(u)) if i not in chosen]
        gain = {i: float(saliency[i]) - penalty * sum(float(u[i] @ u[j]) > similarity for j in chosen) for i in rest}
        chosen.append(max(rest, key=lambda i: (gain[i], -i)))
    return sorted(chosen)


@pytest.mark.parametrize(("similarity", "penalty"), [(0.9, 2.0), (0.5, 2.0), (0.5, 0.1)])
@pytest.mark.parametrize(("batch", "n", "keep"), [*SIZES, (1, 180, 150)])
def test_greedyprune(batch, n, keep, similarity, penalty):
    x, text = crowd(batch, n, seed=n), features(batch, 5, 24, seed=3)
    mask = torch.tensor([[True, True, True, True, False]]).expand(batch, 5)
    method = get_method("greedyprune", cosine_threshold=similarity, penalty=penalty)
    want = [greedyprune(x[b], unit(x[b]) @ unit(text[b, 3]), keep, similarity, penalty) for b in range(batch)]
    assert kept(ts.reduce(x, method, keep, text=text, text_mask=mask)) == want


def test_greedyprune_keeps_no_two_alike_while_it_can():
    x, text = crowd(1, 60, seed=1), features(1, 2, 24, seed=3)
    s, method = ts.Signals(features=x, text=text), get_method("greedyprune", cosine_threshold=0.5)
    for keep, pairs in ((6, 0), (7, 1)):
        chosen = mask_of(kept(ts.reduce(x, method, keep, text=text)), 60)
        assert int(cosines.pairs(x, chosen, 0.5)) == pairs
        assert float(method.objective(s, chosen)) == pytest.approx(float(method.score(s)[chosen].sum()) - 2 * pairs)


@pytest.mark.parametrize("seed", range(5))
def test_greedyprune_against_brute_force(seed):
    """12 tokens: never above the optimum, and at it where no two tokens are alike."""
    x, text = crowd(1, 12, seed=seed), features(1, 2, 24, seed=seed + 50)
    s = ts.Signals(features=x, text=text)
    for similarity, ratio in ((0.5, 0.9), (1.0, 1.0)):
        method = get_method("greedyprune", cosine_threshold=similarity)

        def value(chosen, method=method):
            return float(method.objective(s, mask_of([chosen], 12)))

        every = [value(c) for c in itertools.combinations(range(12), 5)]
        least, optimum = min(every), max(every)
        greedy = value(kept(ts.reduce(x, method, 5, text=text))[0])
        assert greedy <= optimum + 1e-5
        assert greedy - least >= ratio * (optimum - least) - 1e-5


# ---- in a model


@pytest.mark.parametrize(
    ("name", "site"),
    [
        *((name, "handoff") for name in ("mmtok", "scope", "cdpruner", "holov", "todre", "g-prune", "greedyprune")),
        ("cluster-aggregation", "handoff"),
        ("cluster-aggregation", "prefill"),
        ("greedyprune", "prefill"),
    ],
)
def test_in_a_model(name, site):
    model, inputs = llava(), prompt((1, 2))
    with ts.sieve(model, name, keep=10, site=site) as s:
        assert bool(model(**inputs).logits.isfinite().all())
    assert s.last.layer_tokens[-1] == 10
    assert s.last.stages[-1].reduction.counts.tolist() == [10, 10, 10]
