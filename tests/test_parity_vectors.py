"""Methods that reduce stored vectors, against plain loops written from their definitions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

import tokensieve as ts
from tests.test_parity_vlm import kept, unit
from tokensieve.core.method_registry import get_method
from tokensieve.parts import merge
from tokensieve.testing import features

SIZES = [(1, 2, 1), (2, 7, 3), (3, 40, 13), (2, 90, 33)]


def ranks(batch, n, seed=0):
    """Few different values: many ties."""
    return torch.randint(0, 9, (batch, n), generator=torch.Generator().manual_seed(seed)).float()


def by(value, keep):
    """The places of the highest values, the earlier one of equals."""
    return sorted(sorted(range(len(value)), key=lambda i: (-value[i], i))[:keep])


def mean(x, members):
    """Their mean direction, at the mean of their lengths."""
    total = np.asarray(x[members].double()).mean(0)
    length = np.linalg.norm(np.asarray(x[members].double()), axis=1).mean()
    return total / np.linalg.norm(total) * length


def groups(r, b):
    """The sets of tokens behind the slots of a row, in order."""
    return [(r.owner[b] == slot).nonzero()[:, 0].tolist() for slot in range(int(r.counts[b]))]


def check_means(r, x):
    y = r.apply(x)
    for b in range(len(x)):
        for slot, members in enumerate(groups(r, b)):
            torch.testing.assert_close(y[b, slot].double(), torch.from_numpy(mean(x[b], members)), atol=1e-5, rtol=1e-4)


# ---- token pruning: arXiv 2112.06540


@pytest.mark.parametrize(("batch", "n", "keep"), SIZES)
def test_first_k(batch, n, keep):
    assert kept(ts.reduce(features(batch, n), "first-k", keep)) == [list(range(keep))] * batch


@pytest.mark.parametrize(("batch", "n", "keep"), SIZES)
def test_idf(batch, n, keep):
    value = ranks(batch, n)
    assert kept(ts.reduce(features(batch, n), "idf", keep, idf=value)) == [by(v.tolist(), keep) for v in value]


@pytest.mark.parametrize(("batch", "n", "keep"), SIZES)
def test_received_attention(batch, n, keep):
    a = torch.rand(batch, 4, n, generator=torch.Generator().manual_seed(1))
    want = [by([float(sum(a[b, h, i].double() for h in range(4))) for i in range(n)], keep) for b in range(batch)]
    assert kept(ts.reduce(features(batch, n), "received-attention", keep, received_attention=a)) == want


@pytest.mark.parametrize(("batch", "n", "keep"), SIZES)
def test_stopwords(batch, n, keep):
    stop = ranks(batch, n) > 5
    want = [sorted(sorted(range(n), key=lambda i: (bool(stop[b, i]), i))[:keep]) for b in range(batch)]
    assert kept(ts.reduce(features(batch, n), "stopwords", keep, stop=stop)) == want


# ---- whole words: arXiv 2203.13088


def words(word, unique):
    """Groups of places, one per word (or per run of it); -1 stands alone."""
    found: dict = {}
    for i, w in enumerate(word):
        run = 0 if unique else i if i == 0 or word[i - 1] != w else next(reversed(found))[1]
        found.setdefault(("none", i) if w < 0 else (w, run), []).append(i)
    return list(found.values())


@pytest.mark.parametrize("unique", [True, False])
@pytest.mark.parametrize(("batch", "n", "keep"), [*SIZES, (2, 50, 49), (2, 60, 5)])
def test_whole_words(batch, n, keep, unique):
    x, rarity = features(batch, n), ranks(batch, n)
    # Runs of two tokens; words come again, and some tokens are of none.
    word = torch.randint(-1, max(n // 4, 1), (batch, -(-n // 2)), generator=torch.Generator().manual_seed(n))
    word = word.repeat_interleave(2, 1)[:, :n]
    r = ts.reduce(x, get_method("whole-words", unique=unique), keep, word=word, idf=rarity)
    for b in range(batch):
        made = words(word[b].tolist(), unique)
        value = [max(float(rarity[b, i]) for i in members) for members in made]
        assert groups(r, b) == [made[i] for i in by(value, keep)]
    check_means(r, x)


def test_words_behind_padding_are_those_of_the_row_alone():
    x, word, rarity = features(1, 8), torch.tensor([[0, 0, 3, 3, 9, 9, 0, 3]]), ranks(1, 8)
    mask = torch.tensor([[False, True, True, True, False, True, True, True]])
    place = mask[0].nonzero()[:, 0]
    for unique in (True, False):
        made = get_method("whole-words", unique=unique)
        padded = ts.reduce(x, made, 3, word=word, idf=rarity, mask=mask)
        alone = ts.reduce(x[:, place], made, 3, word=word[:, place], idf=rarity[:, place])
        assert place[alone.kept].tolist() == padded.kept.tolist()
        assert torch.equal(padded.owner[:, place], alone.owner)


# ---- k-means: arXiv 2505.11471


def lloyd(u, keep, steps):
    """Rounds from centres at equal steps; the tokens of each cluster. Meant for data on which no cluster runs empty."""
    n = len(u)
    centre = u[[i for i in range(n) if i * keep // n != (i - 1) * keep // n]]
    label = cdist(u, centre).argmin(1)
    for _ in range(steps - 1):
        assert len(set(label.tolist())) == keep
        centre = np.stack([u[label == c].mean(0) for c in range(keep)])
        before, label = label, cdist(u, centre).argmin(1)
        if (before == label).all():
            break
    return {frozenset(np.flatnonzero(label == c).tolist()) for c in range(keep)}


@pytest.mark.parametrize("steps", [1, 3, 20])
@pytest.mark.parametrize(("batch", "n", "keep"), [(1, 2, 1), (2, 7, 3), (3, 40, 5), (2, 90, 8)])
def test_kmeans(batch, n, keep, steps):
    x = features(batch, n, 8, seed=n)
    r = ts.reduce(x, get_method("kmeans", steps=steps), keep)
    for b in range(batch):
        assert {frozenset(g) for g in groups(r, b)} == lloyd(unit(x[b]), keep, steps)
    check_means(r, x)


# ---- bottom-up clustering: arXiv 2409.14683


def bottom_up(u, keep, linkage):
    """Merge the two nearest clusters, over and over."""
    clusters = [[i] for i in range(len(u))]

    def far(a, b):
        pairs = [1 - float(u[i] @ u[j]) for i, j in itertools.product(a, b)]
        if linkage == "ward":
            apart = u[a].mean(0) - u[b].mean(0)
            return len(a) * len(b) / (len(a) + len(b)) * float(apart @ apart)
        return {"average": np.mean, "single": min, "complete": max}[linkage](pairs)

    while len(clusters) > keep:
        i, j = min(itertools.combinations(range(len(clusters)), 2), key=lambda p: far(clusters[p[0]], clusters[p[1]]))
        clusters[i] += clusters.pop(j)
    return {frozenset(c) for c in clusters}


@pytest.mark.parametrize("linkage", ["ward", "average", "single", "complete"])
@pytest.mark.parametrize(("batch", "n", "keep"), [(1, 2, 1), (2, 7, 3), (2, 24, 9)])
def test_agglomerative(batch, n, keep, linkage):
    x = features(batch, n, 8, seed=n)
    r = ts.reduce(x, get_method("agglomerative", linkage=linkage), keep)
    for b in range(batch):
        assert {frozenset(g) for g in groups(r, b)} == bottom_up(unit(x[b]), keep, linkage)
    check_means(r, x)


@pytest.mark.parametrize("name", ["agglomerative", "kmeans"])
def test_pooled_unit_vectors_are_unit_vectors(name):
    x = torch.nn.functional.normalize(features(2, 30), dim=-1)
    norm = torch.linalg.vector_norm(ts.reduce(x, name, 7).apply(x), dim=2)
    torch.testing.assert_close(norm, torch.ones(2, 7))


@given(st.integers(1, 20), st.integers(1, 6), st.integers(0, 99))
def test_levelled_slots_have_the_mean_length_of_their_tokens(n, slots, seed):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(2, n, 5, generator=draw) * torch.rand(2, n, 1, generator=draw)
    slots = min(slots, n)
    chosen = torch.arange(n).expand(2, n) < slots
    target = torch.randint(-1, slots, (2, n), generator=draw)
    weight = torch.rand(2, n, generator=draw) + 0.1
    out = ts.Reduction.weighted(chosen, target, merge.levelled(x, chosen, target, weight)).apply(x)
    for b, s in itertools.product(range(2), range(slots)):
        members = [i for i in range(n) if i == s or (i >= slots and target[b, i] == s)]
        share = weight[b, members] / weight[b, members].sum()
        total = (x[b, members] * share[:, None]).sum(0)
        length = (torch.linalg.vector_norm(x[b, members], dim=1) * share).sum()
        torch.testing.assert_close(out[b, s], total / total.norm() * length, atol=1e-5, rtol=1e-3)


def test_opposite_vectors_stay_finite():
    x = torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]])
    chosen, target = torch.tensor([[True, False, True]]), torch.tensor([[-1, 0, -1]])
    out = ts.Reduction.weighted(chosen, target, merge.levelled(x, chosen, target, torch.ones(1, 3))).apply(x)
    torch.testing.assert_close(out, torch.tensor([[[0.0, 0.0], [0.0, 1.0]]]))


# ---- coverage


@pytest.mark.parametrize(("batch", "n", "keep"), SIZES)
def test_coverage(batch, n, keep):
    x = features(batch, n, 12, seed=n)
    want = []
    for b in range(batch):
        like, best, chosen = (unit(x[b]) @ unit(x[b]).T * 1024).round(), np.zeros(n), []
        for _ in range(keep):
            gain = np.maximum(like - best, 0).sum(1)
            chosen.append(max((i for i in range(n) if i not in chosen), key=lambda i: (gain[i], -i)))
            best = np.maximum(best, like[chosen[-1]])
        want.append(sorted(chosen))
    assert kept(ts.reduce(x, "coverage", keep)) == want


def test_a_sieve_does_not_take_methods_of_stored_vectors():
    from tests.models import llava

    with pytest.raises(ValueError, match="site='vectors' reduces what an encoder has put out"):
        ts.sieve(llava(), "kmeans", keep=4)
