"""Handoff methods of whole images against plain loops written from the papers' definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import tokensieve as ts
from tests.models import llava, prompt
from tests.test_parity_vlm import SIZES, attention, best, kept, unit
from tokensieve.core.method_registry import get_method
from tokensieve.core.plan import plan
from tokensieve.testing import features

# ---- FoPru: arXiv 2411.14164


@pytest.mark.parametrize(("batch", "high", "wide", "keep"), [(2, 6, 6, 18), (3, 4, 7, 10), (2, 5, 3, 1), (1, 8, 8, 40)])
def test_fopru(batch, high, wide, keep):
    n = high * wide
    a, x = attention(batch, 4, n), features(batch, n)
    ranked, by_row = [], []
    for b in range(batch):
        s = a[b].double().mean(0)
        ranked.append(sorted(best(s, keep, range(n))))
        rows = [range(y * wide, y * wide + wide) for y in range(high)]
        order = sorted(range(high), key=lambda y: (-float(sum(s[i] for i in rows[y])), y))
        chosen: list[int] = []
        for y in order:
            chosen += best(s, min(wide, keep - len(chosen)), rows[y])
        by_row.append(sorted(chosen))
    assert kept(ts.reduce(x, "fopru", keep, received_attention=a, grid=(high, wide))) == ranked
    assert kept(ts.reduce(x, get_method("fopru", mode="row"), keep, received_attention=a, grid=(high, wide))) == by_row


def test_fopru_by_rows_with_padding():
    a = torch.tensor([[0.1, 0.9, 0.2, 0.2, 0.3, 0.3]])
    mask = torch.tensor([[True, False, True, True, True, True]])
    r = ts.reduce(features(1, 6), get_method("fopru", mode="row"), 3, received_attention=a, grid=(3, 2), mask=mask)
    assert kept(r) == [[2, 4, 5]]


def test_fopru_refuses():
    with pytest.raises(ValueError, match="mode='column'; it must be one of rank, row"):
        get_method("fopru", mode="column")
    with pytest.raises(ts.MissingSignal, match=r"pass grid=\(rows, columns\), or use mode='rank'"):
        ts.reduce(features(1, 6), get_method("fopru", mode="row"), 3, received_attention=attention(1, 6))


# ---- CLS Inflection Pruning: arXiv 2409.01162


def knee(score):
    """Tokens above the point of the falling curve that is farthest from the line between its first and its last."""
    y = sorted((float(v) for v in score), reverse=True)
    n = len(y)
    off = [abs(y[0] + (y[-1] - y[0]) * i / max(n - 1, 1) - y[i]) for i in range(n)]
    at = max(range(n), key=lambda i: (round(off[i], 12), -i))
    return max(1, sum(v > y[at] for v in y)) if off[at] > 1e-6 * (y[0] - y[-1]) else n


@pytest.mark.parametrize(("batch", "n", "keep"), [*SIZES, (4, 200, 199)])
def test_cls_inflection(batch, n, keep):
    a = attention(batch, n, seed=n)
    want = [sorted(best(row, min(keep, knee(row)), range(n))) for row in a.double()]
    assert kept(ts.reduce(features(batch, n), "cls-inflection", keep, cls_attention=a)) == want


def test_more_objects_move_the_inflection():
    a = torch.full((3, 100), 0.001)
    for b, objects in enumerate((4, 12, 30)):
        a[b, :objects] = torch.linspace(1.0, 0.9, objects)
    assert ts.reduce(features(3, 100), "cls-inflection", 99, cls_attention=a).counts.tolist() == [4, 12, 30]


@pytest.mark.parametrize(("batch", "n", "keep"), SIZES)
def test_cls_inflection_l(batch, n, keep):
    a, heard = attention(batch, 2, 6, n), torch.ones(batch, 6, dtype=torch.bool)
    heard[0, :3] = False
    want = [sorted(best(a[b].double()[:, heard[b]].mean((0, 1)), keep, range(n))) for b in range(batch)]
    assert kept(ts.reduce(features(batch, n), "text-attention", keep, text_attention=a, text_mask=heard)) == want


@pytest.mark.parametrize("keep", [1, 2, 3, 16, 0.2, ts.Keep(share=0.2), ts.Keep(average=20)])
@pytest.mark.parametrize("layers", [2, 3, 4])
def test_both_cuts_in_a_model(keep, layers):
    """The plan of both runs in models of any depth, and the mean over layers is at most what was asked for."""
    model, inputs = llava(layers=layers), prompt((1, 1))
    both = plan("cls-inflection", keep)
    assert [s.site for s in both.stages] == ["handoff", "prefill"]
    with ts.sieve(model, both) as sieve:
        model.generate(**inputs, max_new_tokens=2, do_sample=False)
    most = (keep.average or keep.share) if isinstance(keep, ts.Keep) else keep
    most = most * 64 if isinstance(most, float) else most
    assert sum(sieve.last.layer_tokens) / layers <= most + 0.5


# ---- Simignore: arXiv 2412.09817


@pytest.mark.parametrize(("batch", "n", "keep"), SIZES)
def test_simignore(batch, n, keep):
    x, text = features(batch, n, 8), features(batch, 5, 8, seed=9)
    heard = torch.ones(batch, 5, dtype=torch.bool)
    heard[0, :2] = False
    want = []
    for b in range(batch):
        like = unit(x[b]) @ unit(text[b]).T
        pairs = [(-like[i, t], i) for i in range(n) for t in range(5) if heard[b, t]]
        chosen: list[int] = []
        for _, i in sorted(pairs):
            if i not in chosen and len(chosen) < keep:
                chosen.append(i)
        want.append(sorted(chosen))
    assert kept(ts.reduce(x, "simignore", keep, text=text, text_mask=heard)) == want


# ---- TRIM: arXiv 2409.10994


def trim(x, like, keep, appended, parity):
    like = np.array(-like if parity else like, dtype=np.float64)
    p = np.exp(like) / np.exp(like).sum()
    low, high = np.percentile(p, 25), np.percentile(p, 75)
    count = max(int((p > high + 1.5 * (high - low)).sum()), 1)
    n = len(x)
    if keep >= n:
        return list(range(n)), x
    chosen = best(p, min(count, max(keep - appended, 1)), range(n))
    rest = [i for i in range(n) if i not in chosen]
    out = {i: x[i] for i in chosen}
    if appended and keep > 1:
        out[rest[-1]] = x[rest].mean(0)
    return sorted(out), torch.stack([out[i] for i in sorted(out)])


@pytest.mark.parametrize("appended", [True, False])
@pytest.mark.parametrize("parity", [True, False])
@pytest.mark.parametrize(("batch", "n", "keep"), [*SIZES, (2, 100, 1), (2, 100, 2), (3, 100, 99)])
def test_trim(batch, n, keep, appended, parity):
    x, like = features(batch, n), 3 * features(batch, n, 1, seed=8)[..., 0]
    r = ts.reduce(x, get_method("trim", appended=appended, parity=parity), keep, relevance=like)
    for b in range(batch):
        place, out = trim(x[b], like[b], keep, appended, parity)
        assert kept(r)[b] == place
        torch.testing.assert_close(r.apply(x)[b][r.mask[b]], out)


# ---- VisPruner: arXiv 2412.01818


def vispruner(x, a, keep, important, step):
    n, u = len(x), unit(x)
    diverse = min(math.floor(keep * (1 - important) + 0.5), keep - 1)
    first = best(a, keep - diverse, range(n))
    rest = [i for i in best(a, n, range(n)) if i not in first]
    while len(rest) > diverse:
        if diverse == 0:
            rest = []
            break
        even, odd = rest[::2], rest[1::2]
        double = {i: max(float(u[i] @ u[j]) for j in odd) for i in even}
        gone = best(double, min(step, len(rest) - diverse, len(odd)), even)
        rest = best(double, n, [i for i in even if i not in gone]) + odd
    return sorted(first + rest)


@pytest.mark.parametrize(("important", "step"), [(0.5, 8), (0.5, 3), (0.1, 1), (0.8, 50), (1.0, 8)])
@pytest.mark.parametrize(("batch", "n", "keep"), SIZES)
def test_vispruner(batch, n, keep, important, step):
    x, a = features(batch, n, 6), attention(batch, 4, n)
    made = get_method("vispruner", important=important, step=step)
    want = [vispruner(x[b], a[b].double().mean(0), keep, important, step) for b in range(batch)]
    assert kept(ts.reduce(x, made, keep, cls_attention=a)) == want


def test_vispruner_drops_duplicates():
    """Of 40 tokens that all stand twice, the diverse half of the budget holds no token twice."""
    x = features(1, 40, 16).repeat_interleave(2, 1)
    a = torch.linspace(1, 0.5, 80)[None]
    x[:, :20] = features(1, 20, 16, seed=7)
    r = ts.reduce(x, "vispruner", 40, cls_attention=a)
    rest = [i // 2 for i in kept(r)[0] if i >= 20]
    assert len(set(rest)) == len(rest)


# ---- LLaVA-PruMerge: arXiv 2403.15388


def prumerge(x, a, k, keep, plus):
    n = len(x)
    low, high = np.percentile(a, 25), np.percentile(a, 75)
    chosen = best(a, min(keep, max(int((a > high + 1.5 * (high - low)).sum()), 1)), range(n))
    if plus:
        rest, more = [i for i in range(n) if i not in chosen], keep - len(chosen)
        chosen += [rest[math.ceil(t * len(rest) / more)] for t in range(more)]
    members = {i: [i] for i in chosen}
    for i in range(n):
        if i not in chosen:
            members[max(sorted(chosen), key=lambda t: float(unit(k[i]) @ unit(k[t])))].append(i)
    out = {i: sum(float(a[j]) * x[j] for j in m) / sum(float(a[j]) for j in m) for i, m in members.items()}
    return sorted(out), torch.stack([out[i] for i in sorted(out)])


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize(("batch", "n", "keep"), [*SIZES, (2, 100, 1), (2, 144, 40)])
def test_prumerge(batch, n, keep, plus):
    x, k, a = features(batch, n), features(batch, n, 8, seed=2), (3 * features(batch, n, 1, seed=4)[..., 0]).softmax(-1)
    r = ts.reduce(x, get_method("prumerge", plus=plus), keep, cls_attention=a, keys=k)
    for b in range(batch):
        place, out = prumerge(x[b], np.array(a[b], dtype=np.float64), k[b], keep, plus)
        assert kept(r)[b] == place
        torch.testing.assert_close(r.apply(x)[b][r.mask[b]], out)
    assert not plus or r.counts.tolist() == [keep] * batch


# ---- in a model


@pytest.mark.parametrize(
    "name",
    [
        "hired",
        "globalcom2",
        "token-correlation",
        "fopru",
        "cls-inflection",
        "simignore",
        "trim",
        "vispruner",
        "prumerge",
    ],
)
def test_in_a_model(name):
    """One image on one grid, two in a prompt: the encoder gives each method what it reads."""
    model, inputs = llava(), prompt((1, 2))
    with ts.sieve(model, name, keep=16) as sieve:
        model.generate(**inputs, max_new_tokens=2, do_sample=False)
    reduction = sieve.last.stages[-1].reduction
    assert reduction.n == 64
    assert bool((reduction.counts <= 16).all() if get_method(name).adaptive else (reduction.counts == 16).all())
