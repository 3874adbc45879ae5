"""The methods against plain loops written from the papers' definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import tokensieve as ts
from tokensieve.core.method_registry import get_method
from tokensieve.parts import budget
from tokensieve.testing import features

SIZES = [(1, 2, 1), (2, 7, 3), (3, 40, 13), (2, 100, 33), (1, 180, 150)]


def attention(*shape: int, seed: int = 5) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).softmax(-1)


def unit(x):
    x = np.asarray(x, dtype=np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def best(score, count, candidates):
    """The `count` members of `among` with the highest score, earlier ones first among equals."""
    return sorted(candidates, key=lambda i: (-float(score[i]), i))[:count]


def kept(r):
    return [row[mask].tolist() for row, mask in zip(r.kept, r.mask, strict=True)]


# ---- DivPrune: arXiv 2503.02175


def divprune(x, keep):
    u = unit(x)
    n = len(u)
    distance = [[1 - float(u[i] @ u[j]) for j in range(n)] for i in range(n)]
    nearest = [min((distance[i][j] for j in range(n) if j != i), default=math.inf) for i in range(n)]
    chosen = [max(range(n), key=lambda i: (round(nearest[i], 9), -i))]
    while len(chosen) < keep:
        rest = [i for i in range(n) if i not in chosen]
        chosen.append(max(rest, key=lambda i: (min(distance[i][j] for j in chosen), -i)))
    return sorted(chosen)


@pytest.mark.parametrize(("batch", "n", "keep"), [*SIZES, (2, 100, 99), (1, 300, 3), (4, 90, 70)])
def test_divprune(batch, n, keep):
    x = features(batch, n, 12, seed=n)
    assert kept(ts.reduce(x, "divprune", keep)) == [divprune(row, keep) for row in x]


def test_divprune_on_clusters():
    """Few directions with many tokens each: most steps invalidate most of what was looked at in advance."""
    x = features(2, 6, 24, seed=3).repeat(1, 30, 1) + 0.1 * features(2, 180, 24, seed=4)
    for keep in (5, 6, 7, 40, 120):
        assert kept(ts.reduce(x, "divprune", keep)) == [divprune(row, keep) for row in x]


def test_divprune_spreads_more_than_random():
    x = features(1, 200, 8)

    def spread(r):
        u = torch.nn.functional.normalize(r.apply(x)[0], dim=-1)
        return float((1 - u @ u.T + 9 * torch.eye(len(u))).min())

    assert spread(ts.reduce(x, "divprune", 20)) > 2 * spread(ts.reduce(x, "random", 20))


# ---- attention of CLS


@pytest.mark.parametrize(("batch", "n", "keep"), SIZES)
def test_fastervlm(batch, n, keep):
    a = attention(batch, 4, n)
    want = [sorted(best(a[b].double().mean(0), keep, range(n))) for b in range(batch)]
    assert kept(ts.reduce(features(batch, n), "fastervlm", keep, cls_attention=a)) == want
    assert kept(ts.reduce(features(batch, n), "fastervlm", keep, cls_attention=a.mean(1))) == want
    assert kept(ts.reduce(features(batch, n), "fastervlm", keep, received_attention=a)) == want


@pytest.mark.parametrize(("batch", "n", "keep"), SIZES)
def test_vtc_cls(batch, n, keep):
    layers = {i: attention(batch, 4, n, seed=10 + i) for i in range(-8, 0)}
    score = sum(layers[i].double().mean(1) for i in range(-8, -1))
    want = [sorted(best(score[b], keep, range(n))) for b in range(batch)]
    assert kept(ts.reduce(features(batch, n), "vtc-cls", keep, cls_attention=layers)) == want


# ---- VisionZip: arXiv 2412.04467


def visionzip(a, k, x, keep, contextual, parity):
    """Kept indices and the reduced tokens."""
    n = len(x)
    spare = min(math.floor(keep * contextual + 0.5), keep - 1)
    dominant = best(a, keep - spare, range(n))
    rest = [i for i in range(n) if i not in dominant]
    if parity:
        targets = rest[:: max(1, len(rest) // spare)][:spare] if spare else []
    else:
        targets = [rest[math.ceil(t * len(rest) / spare)] for t in range(spare)]
    members: dict[int, list[int]] = {t: [] for t in targets}
    for i in rest:
        if i not in targets and targets:
            members[max(targets, key=lambda t: float(unit(k[i]) @ unit(k[t])))].append(i)
    out = {}
    for i in sorted(dominant + targets):
        join = members.get(i, [])
        if parity:
            out[i] = x[i] + (x[join].mean(0) if join else 0)
        else:
            out[i] = x[[i, *join]].mean(0)
    return sorted(dominant), list(out), torch.stack(list(out.values()))


@pytest.mark.parametrize("parity", [False, True])
@pytest.mark.parametrize(("batch", "n", "keep"), [*SIZES, (2, 576, 64)])
def test_visionzip(batch, n, keep, parity):
    a, k, x = attention(batch, 4, n), features(batch, n, 8, seed=2), features(batch, n)
    r = ts.reduce(x, get_method("visionzip", parity=parity), keep, cls_attention=a, keys=k)
    for b in range(batch):
        dominant, slots, out = visionzip(a[b].double().mean(0), k[b], x[b], keep, 10 / 64, parity)
        assert set(dominant) <= set(r.kept[b].tolist())
        assert r.kept[b].tolist() == slots
        torch.testing.assert_close(r.apply(x)[b], out)
    if n == 576:
        assert len(dominant) == 54


# ---- HiPrune: arXiv 2508.00553


def hiprune(middle, deep, grid, keep, alpha):
    h, w = grid
    n = h * w
    anchors = best(middle, min(math.floor(keep * alpha / 5 + 0.5), keep - 1), range(n))
    buffers = set()
    for i in anchors:
        y, x = divmod(i, w)
        buffers |= {
            yy * w + xx for yy, xx in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)) if 0 <= yy < h and 0 <= xx < w
        }
    chosen = [*anchors, *best(middle, keep - len(anchors), buffers - set(anchors))]
    return sorted(chosen + best(deep, keep - len(chosen), set(range(n)) - set(chosen)))


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0])
@pytest.mark.parametrize(("grid", "keep"), [((4, 5), 7), ((6, 6), 30), ((24, 24), 64), ((3, 30), 50), ((2, 2), 3)])
def test_hiprune(grid, keep, alpha):
    n = grid[0] * grid[1]
    a = {-16: attention(3, 4, n, seed=1), -2: attention(3, 4, n, seed=2)}
    r = ts.reduce(features(3, n), get_method("hiprune", alpha=alpha), keep, received_attention=a, grid=grid)
    mean = {layer: rows.double().mean(1) for layer, rows in a.items()}
    assert kept(r) == [hiprune(mean[-16][b], mean[-2][b], grid, keep, alpha) for b in range(3)]


def test_hiprune_buffers_do_not_wrap():
    """An anchor at the end of a row has no neighbour at the start of the next."""
    middle, deep = torch.zeros(1, 25), torch.linspace(0, 1, 25)[None]
    middle[0, 9] = 1
    r = ts.reduce(
        features(1, 25), get_method("hiprune", alpha=1.0), 5, received_attention={-16: middle, -2: deep}, grid=(5, 5)
    )
    assert kept(r) == [[4, 8, 9, 14, 24]]


# ---- DART: arXiv 2502.11494


def dart(x, k, text, keep, pivots, text_pivots):
    n = len(x)
    norm = np.abs(np.asarray(k, dtype=np.float64)).sum(-1)
    chosen = best(norm, min(pivots, keep), range(n))
    looks = [x[i] for i in chosen]
    if text is not None:
        norm = np.abs(np.asarray(text, dtype=np.float64)).sum(-1)
        looks += [text[i] for i in best(norm, text_pivots, range(len(text)))]
    rest = keep - len(chosen)
    for g, pivot in enumerate(looks):
        quota = rest // len(looks) + (g < rest % len(looks))
        left = [i for i in range(n) if i not in chosen]
        chosen = chosen + best(-(unit(x) @ unit(pivot)), quota, left)
    return sorted(chosen)


@pytest.mark.parametrize("with_text", [True, False])
@pytest.mark.parametrize(("batch", "n", "keep"), [*SIZES, (2, 576, 64)])
def test_dart(batch, n, keep, with_text):
    x, k = features(batch, n, seed=7), features(batch, n, 8, seed=8)
    text = features(batch, 9, seed=9) if with_text else None
    want = [dart(x[b], k[b], text[b] if with_text else None, keep, 4, 4) for b in range(batch)]
    assert kept(ts.reduce(x, "dart", keep, keys=k, text=text)) == want


def test_dart_leaves_out_padded_text():
    x, k, text = features(1, 50), features(1, 50, seed=1), features(1, 6, seed=2)
    longer = torch.cat([99 * features(1, 3, seed=3), text], 1)
    mask = torch.arange(9)[None] >= 3
    alone = ts.reduce(x, "dart", 20, keys=k, text=text)
    assert kept(ts.reduce(x, "dart", 20, keys=k, text=longer, text_mask=mask)) == kept(alone)


# ---- attention of text


@pytest.mark.parametrize(("batch", "n", "keep"), SIZES)
def test_fastv(batch, n, keep):
    a = attention(batch, 4, n)
    want = [sorted(best(a[b].double().mean(0), keep, range(n))) for b in range(batch)]
    x = features(batch, n)
    assert kept(ts.reduce(x, "fastv", keep, last_attention=a)) == want
    rows = torch.cat([attention(batch, 4, 3, n, seed=9), a[:, :, None], attention(batch, 4, 2, n, seed=8)], 2)
    mask = torch.tensor([[False, True, True, True, False, False]]).expand(batch, 6)
    assert kept(ts.reduce(x, "fastv", keep, text_attention=rows, text_mask=mask)) == want


def test_fastv_from_text():
    x, text = features(2, 30), features(2, 4, seed=1)
    want = [sorted(best(np.asarray(x[b]) @ np.asarray(text[b, -1]), 9, range(30))) for b in range(2)]
    assert kept(ts.reduce(x, "fastv", 9, text=text)) == want


def sparsevlm_score(x, text, rows, real):
    """Raters by mean softmax(H_v H_q^T) over visual tokens, at least its mean; their mean attention."""
    like = np.asarray(x, dtype=np.float64) @ np.asarray(text, dtype=np.float64)[real].T
    share = np.exp(like - like.max(1, keepdims=True))
    relevance = (share / share.sum(1, keepdims=True)).mean(0)
    raters = np.array(real)[relevance >= relevance.mean()]
    return raters, np.asarray(rows, dtype=np.float64)[raters].mean(0)


@pytest.mark.parametrize(("n", "keep"), [(40, 7), (100, 33), (576, 64), (576, 192)])
def test_sparsevlm(n, keep):
    x, text, a = features(2, n, seed=1), features(2, 11, seed=2), attention(2, 4, 11, n)
    real = [list(range(2, 11)), list(range(11))]
    mask = torch.tensor([[i in r for i in range(11)] for r in real])
    r = ts.reduce(x, "sparsevlm", keep, text=text, text_attention=a, text_mask=mask)
    plain, again = budget.recycle(torch.tensor([keep]), torch.tensor([n]), 0.3, 10)
    for b in range(2):
        _, score = sparsevlm_score(x[b], text[b], a[b].mean(0), real[b])
        first = best(score, int(plain), range(n))
        second = sorted(best(score, int(again), set(range(n)) - set(first)))
        centres, member = density_peaks(x[b], second, keep - int(plain))
        assert kept(r)[b] == sorted([*first, *centres])
        out = {i: x[b, i] for i in first}
        out |= {c: x[b, [i for i in second if member[i] == c]].mean(0) for c in centres}
        torch.testing.assert_close(r.apply(x)[b], torch.stack([out[i] for i in sorted(out)]), rtol=1e-4, atol=1e-5)
        assert r.owner[b].ge(0).sum() == int(plain) + int(again)


def density_peaks(x, candidates, count):
    """Density over the nearest neighbours, distance to the nearest denser token, both multiplied."""
    x = np.asarray(x, dtype=np.float64)
    d = {(i, j): np.linalg.norm(x[i] - x[j]) / math.sqrt(x.shape[1]) for i in candidates for j in candidates}
    density = {i: math.exp(-np.mean(np.sort([d[i, j] for j in candidates])[:count] ** 2)) for i in candidates}
    order = sorted(candidates, key=lambda i: (-density[i], i))
    apart = {i: min((d[i, j] for j in order[:rank]), default=max(d.values())) for rank, i in enumerate(order)}
    centres = sorted(candidates, key=lambda i: -density[i] * apart[i])[:count]
    return centres, {i: i if i in centres else min(centres, key=lambda c: d[i, c]) for i in candidates}


@pytest.mark.parametrize(("keep", "plain"), [(192, 180), (128, 114), (64, 48)])
def test_sparsevlm_spends_the_budget_as_the_public_code(keep, plain):
    """Its tables for 576 tokens: 180, 114 and 48 tokens kept as they are, the rest clusters."""
    kept_as_is, recycled = budget.recycle(torch.tensor([keep]), torch.tensor([576]), 0.3, 10)
    assert int(kept_as_is) == plain
    assert int(recycled) == int((576 - plain) * 0.3) + 1


def test_sparsevlm_by_rank():
    """Rows of rank 2 over 30 tokens: with lambda 0.5, 14 of the 28 redundant tokens leave."""
    a = (attention(1, 6, 2) @ attention(1, 2, 30))[:, None]
    x = features(1, 30)
    assert ts.reduce(x, get_method("sparsevlm", rank=0.5), 29, text_attention=a).counts.tolist() == [16]
    assert ts.reduce(x, get_method("sparsevlm", rank=0.5), 9, text_attention=a).counts.tolist() == [9]


def test_an_instance_says_whether_its_count_adapts():
    assert not get_method("sparsevlm").adaptive
    assert get_method("sparsevlm", rank=0.5).adaptive
    assert get_method("prumerge").adaptive
    assert not get_method("prumerge", plus=True).adaptive
    a = torch.full((1, 40), 0.01)
    a[0, :3] = 1.0
    assert ts.reduce(features(1, 40), get_method("prumerge", plus=True), 9, cls_attention=a).counts.tolist() == [9]
