"""The methods of family vit against their papers' algorithms, written as plain loops."""

import math

import pytest
import torch
from torch.nn.functional import cosine_similarity, normalize

import tokensieve as ts
from tokensieve.core import method_registry
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.parts import merge, select
from tokensieve.parts.merge import cluster, transform
from tokensieve.testing import Largest, Live, features, signals


def matching(keys, sizes, keep):
    """ToMe on one row: members of each surviving token, by rounds of bipartite soft matching."""
    clusters = [([i], keys[i].clone(), float(sizes[i])) for i in range(len(keys))]
    while len(clusters) > keep:
        leave = min(len(clusters) - keep, len(clusters) // 2)
        edges = []
        for i in range(0, len(clusters), 2):
            likes = [
                (float(cosine_similarity(clusters[i][1], clusters[j][1], dim=0)), -j)
                for j in range(1, len(clusters), 2)
            ]
            like, j = max(likes)
            edges.append((like, i, -j))
        gone = {i: j for _, i, j in sorted(edges, key=lambda e: (-e[0], e[1]))[:leave]}
        merged = []
        for j, (members, key, size) in enumerate(clusters):
            if j in gone:
                continue
            joining = [clusters[i] for i in gone if gone[i] == j]
            total = size + sum(c[2] for c in joining)
            mean = (key * size + sum(c[1] * c[2] for c in joining)) / total
            merged.append((members + [m for c in joining for m in c[0]], mean, total))
        clusters = merged
    return [c[0] for c in clusters]


@pytest.mark.parametrize("n", [12, 13])
@pytest.mark.parametrize("keep", [12, 11, 8, 7, 3, 1])
def test_tome_is_bipartite_soft_matching(n, keep):
    x, keys = features(2, n), torch.randn(2, 3, n, 8, generator=torch.Generator().manual_seed(5))
    sizes = torch.randint(1, 5, (2, n), generator=torch.Generator().manual_seed(6)).float()
    r = ts.reduce(x, "tome", keep, keys=keys, sizes=sizes)
    for row in range(2):
        expected = matching(keys[row].mean(0), sizes[row], keep)
        for slot, members in enumerate(expected):
            assert sorted(members) == (r.owner[row] == slot).nonzero()[:, 0].tolist()
            assert r.kept[row, slot] == members[0]
            share = sizes[row, members] / sizes[row, members].sum()
            torch.testing.assert_close(r.apply(x)[row, slot], (share[:, None] * x[row, members]).sum(0))


def test_tome_holds_no_quadratic_tensor():
    x = features(1, 6000, 8)
    with Largest() as seen:
        ts.reduce(x, "tome", 100)
    assert seen.elements <= 1024 * 3000


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tome", "random", "uniform", "pool"])
def test_a_large_image_takes_little_memory(name):
    """224 x 224 patches, of which a number for each pair would take 10 GB."""
    x = features(1, 50_176, 32)
    with Live() as seen:
        r = ts.reduce(x, name, 48_000)
        r.restore(r.apply(x))
    assert seen.peak < 5e8


def agglomerate(x, keep, linkage):
    far = 1 - normalize(x, dim=1) @ normalize(x, dim=1).T
    over = {"single": min, "complete": max, "average": lambda d: sum(d) / len(d)}[linkage]
    found = [[i] for i in range(len(x))]
    while len(found) > keep:
        pairs = [(i, j) for i in range(len(found)) for j in range(i)]
        i, j = min(pairs, key=lambda p: over([float(far[a, b]) for a in found[p[0]] for b in found[p[1]]]))
        found[j] += found.pop(i)
    return sorted(map(sorted, found))


@pytest.mark.parametrize("linkage", ["single", "complete", "average"])
@pytest.mark.parametrize("keep", [1, 2, 5, 13, 17])
def test_atc_is_agglomerative_clustering(linkage, keep):
    x = features(1, 18)
    r = ts.reduce(x, method_registry.get_method("atc", linkage=linkage), keep)
    groups = [(r.owner[0] == slot).nonzero()[:, 0].tolist() for slot in range(keep)]
    assert sorted(groups) == agglomerate(x[0], keep, linkage)
    for slot, members in enumerate(groups):
        mean = normalize(x[0, members], dim=1).mean(0)
        near = cosine_similarity(x[0, members].double(), mean[None].double())
        assert r.kept[0, slot] == members[int((near > near.max() - 1e-6).nonzero()[0])]
        torch.testing.assert_close(r.apply(x)[0, slot], x[0, members].mean(0))


@pytest.mark.parametrize("name", ["atc", "agglomerative"])
@pytest.mark.parametrize("seed", range(12))
def test_where_clusters_stand_is_not_decided_by_rounding(name, seed):
    """Most clusters hold two tokens, which are equally near to their mean: the earlier one it is, in whatever order coordinates
    are added up, and at any length of the vectors."""
    x, draw = features(3, 40, seed=seed), torch.Generator().manual_seed(seed)
    r = ts.reduce(x, name, 26)
    for other in (x.flip(2), x[..., torch.randperm(16, generator=draw)], 1.7 * x, x / 300):
        assert torch.equal(ts.reduce(other, name, 26).kept, r.kept)
    for owner, kept in zip(r.owner.tolist(), r.kept.tolist(), strict=True):
        groups = [[i for i, o in enumerate(owner) if o == slot] for slot in range(26)]
        assert [k for k, g in zip(kept, groups, strict=True) if len(g) == 2] == [g[0] for g in groups if len(g) == 2]


@pytest.mark.parametrize("limit", [cluster.EXACT, 8])
@pytest.mark.parametrize("linkage", ["single", "complete", "average"])
def test_atc_hits_every_count_in_spite_of_ties(monkeypatch, limit, linkage):
    """Tokens of five directions only; with the lower limit in two stages."""
    monkeypatch.setattr(cluster, "EXACT", limit)
    x = features(1, 5)[:, torch.arange(37) % 5]
    for keep in range(1, 38):
        r = ts.reduce(x, method_registry.get_method("atc", linkage=linkage), keep)
        assert r.counts.tolist() == [keep]
        assert sorted(set(r.owner[0].tolist())) == list(range(keep))


def test_atc_in_two_stages_finds_clear_clusters(monkeypatch):
    monkeypatch.setattr(cluster, "EXACT", 32)
    label = torch.arange(60) * 7 % 6
    x = features(1, 6)[:, label] + 0.05 * features(1, 60, seed=3)
    r = ts.reduce(x, "atc", 6)
    assert len(set(zip(label.tolist(), r.owner[0].tolist(), strict=True))) == 6
    with pytest.raises(ValueError, match="one of single, complete, average"):
        method_registry.get_method("atc", linkage="median")


def test_pruning_and_merging_are_special_matrices():
    x = features(3, 20)
    score, target = torch.rand(2, 3, 20, generator=torch.Generator().manual_seed(2))
    chosen = select.top(score, torch.tensor([4, 7, 20]), torch.ones(3, 20, dtype=torch.bool))
    pruned = Reduction.keep(chosen)
    torch.testing.assert_close(
        transform.pruning(chosen) @ x, pruned.apply(x) * pruned.mask[..., None], atol=1e-6, rtol=0
    )
    into = pruned.kept.gather(1, (target * pruned.counts[:, None]).long())
    into[:, 3] = torch.where(chosen[:, 3], into[:, 3], -1)
    merged = Reduction.merge(chosen, into, score)
    torch.testing.assert_close(transform.merging(chosen, into, score) @ x, merged.apply(x), atol=1e-6, rtol=0)
    torch.testing.assert_close(transform.merging(chosen, into, score), merged.dense(), atol=1e-6, rtol=0)


def test_token_transforming_is_its_matrix():
    x, cls = features(1, 20), torch.rand(1, 2, 20, generator=torch.Generator().manual_seed(4))
    method = method_registry.get_method("token-transforming", temperature=0.3)
    r = ts.reduce(x, method, 6, cls_attention=cls)
    kept = sorted(cls[0].mean(0).argsort(descending=True)[:6].tolist())
    assert r.kept[0].tolist() == kept
    want = torch.zeros(6, 20)
    for j in range(20):
        likes = [math.exp(float(cosine_similarity(x[0, k], x[0, j], dim=0)) / 0.3) for k in kept]
        for i in range(6):
            want[i, j] = likes[i] / sum(likes)
    torch.testing.assert_close(r.dense()[0], want / want.sum(1, keepdim=True))
    assert bool((r.dense() > 0).all())


def test_token_transforming_turns_into_merging_as_it_cools():
    x = features(2, 20)
    r = ts.reduce(x, method_registry.get_method("token-transforming", temperature=1e-4), 6)
    chosen = torch.zeros(2, 20, dtype=torch.bool).scatter_(1, r.kept, True)
    merged = Reduction.merge(chosen, merge.nearest(x, chosen)[0])
    torch.testing.assert_close(r.apply(x), merged.apply(x))


def recycle(x, correlation, kept, quantile):
    """Correlate and compress on one row: ``correlation[i][j]`` of token i with kept token j."""
    share = torch.zeros(len(kept), len(x))
    for i in range(len(x)):
        if i in kept:
            share[kept.index(i), i] = 1
            continue
        edge = torch.quantile(correlation[i], quantile)
        targets = [j for j in range(len(kept)) if correlation[i][j] >= edge]
        for j in targets:
            share[j, i] = correlation[i][j] / sum(correlation[i][t] for t in targets)
    return share / share.sum(1, keepdim=True)


@pytest.mark.parametrize("quantile", [0.998, 0.7])
def test_ficoco_filters_correlates_and_compresses(quantile):
    h, w, keep = 5, 6, 8
    x, keys, cls = features(1, h * w), features(1, h * w, seed=8), features(1, h * w, 2).softmax(1).transpose(1, 2)
    r = ts.reduce(
        x, method_registry.get_method("ficoco", quantile=quantile), keep, keys=keys, cls_attention=cls, grid=(h, w)
    )
    like = torch.stack([torch.stack([keys[0, i] @ keys[0, j] for j in range(h * w)]).mean() for i in range(h * w)])
    task = cls[0].mean(0)
    redundancy = 0.65 * like / like.norm() - 0.35 * task / task.norm()
    for y in range(0, h, 2):
        for z in range(0, w, 2):
            window = [a * w + b for a in (y, y + 1) for b in (z, z + 1) if a < h and b < w]
            worst = max(window, key=lambda i: float(redundancy[i]))
            redundancy[worst] *= 2 if redundancy[worst] > 0 else 0.5
    kept = sorted(redundancy.argsort()[:keep].tolist())
    assert r.kept[0].tolist() == kept
    correlation = ((keys[0] @ keys[0, kept].T) / keys.shape[2] ** 0.5).softmax(1)
    torch.testing.assert_close(r.dense()[0], recycle(x[0], correlation, kept, quantile))


@pytest.mark.parametrize("quantile", [0.998, 0.7])
def test_ficoco_l_reads_the_text(quantile):
    keep, x, rows = 8, features(1, 30), features(1, 7, 30, seed=9).softmax(-1)
    r = ts.reduce(x, method_registry.get_method("ficoco-l", quantile=quantile), keep, text_attention=rows[:, None])
    like, task = x[0] @ x[0].mean(0), rows[0].mean(0)
    redundancy = 0.6 * like / like.norm() - 0.4 * task / task.norm()
    kept = sorted(redundancy.argsort()[:keep].tolist())
    assert r.kept[0].tolist() == kept
    correlation = 0.6 * (x[0] @ x[0, kept].T / x.shape[2] ** 0.5).softmax(1)
    for i in range(30):
        for j, k in enumerate(kept):
            correlation[i, j] += 0.4 * sum(rows[0, t, i] / rows[0, :, i].sum() * rows[0, t, k] for t in range(7))
    torch.testing.assert_close(r.dense()[0], recycle(x[0], correlation, kept, quantile))


def test_tome_is_a_filter_a_correlation_and_a_compression():
    """Filter: similarity to the nearest token of the other set. Correlate: that set alone. Compress: into the nearest."""
    x, keep, n = features(2, 24), torch.tensor([15, 18]), 24
    unit, even = normalize(x, dim=-1), torch.arange(24) % 2 == 0
    like = (unit @ unit.transpose(1, 2)).masked_fill(even, -torch.inf)
    redundancy = torch.where(even, like.amax(2), -torch.inf)
    chosen = ~select.top(redundancy, n - keep, torch.ones(2, n, dtype=torch.bool))
    matrix = transform.assign(unit, chosen, 1.0)
    place, real = select.compact(chosen)
    matrix = matrix.masked_fill((even[place] | ~real)[..., None], 0.0)
    matrix = transform.compress(transform.strongest(matrix, chosen, 1.0), chosen, torch.ones(2, n))
    again, native = Reduction.soft(matrix, chosen), method_registry.get_method("tome").reduce(Signals(x), keep)
    assert torch.equal(again.kept, native.kept)
    assert torch.equal(again.owner, native.owner)
    torch.testing.assert_close(again.apply(x), native.apply(x))


def test_fastv_is_a_filter_alone():
    x, attention = features(2, 24), features(2, 3, 24).softmax(-1)
    chosen = select.top(attention.mean(1), torch.tensor([9, 9]), torch.ones(2, 24, dtype=torch.bool))
    nothing = torch.zeros(2, 9, 24)
    again = Reduction.soft(transform.compress(nothing, chosen, torch.ones(2, 24)), chosen)
    native = ts.reduce(x, "fastv", 9, last_attention=attention)
    assert torch.equal(again.kept, native.kept)
    assert torch.equal(again.owner, native.owner)
    assert torch.equal(again.apply(x), native.apply(x))


@pytest.mark.parametrize("name", ["tome", "atc", "token-transforming", "ficoco", "ficoco-l"])
def test_rows_may_keep_different_numbers(name):
    made, keep = method_registry.get_method(name), torch.tensor([1, 5, 12, 7])
    x, mask = features(4, 16), torch.arange(16) >= torch.tensor([[0], [9], [4], [3]])
    given = signals(made, 4, 16)
    together = made.reduce(Signals(x, mask=mask, **given), keep)
    assert together.counts.tolist() == keep.tolist()
    for b in range(4):
        alone = made.reduce(
            Signals(x[b : b + 1], mask=mask[b : b + 1], **{k: v[b : b + 1] for k, v in given.items()}), keep[b : b + 1]
        )
        m = int(keep[b])
        assert torch.equal(together.kept[b, :m], alone.kept[0])
        assert torch.equal(together.owner[b], alone.owner[0])
        torch.testing.assert_close(together.dense()[b, :m], alone.dense()[0])
        assert not bool(together.dense()[b, m:].any())
    assert torch.equal(together.dense()[2, :, 4:], torch.eye(12))
