"""Methods inside the language model against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tokensieve as ts
from tests.models import IMAGE, llava, prompt
from tests.test_parity_vlm import attention, best, kept, unit
from tokensieve.core.method_registry import get_method
from tokensieve.parts import select
from tokensieve.parts.budget import adaptive_count
from tokensieve.parts.merge import cluster
from tokensieve.parts.select import distance
from tokensieve.testing import features

SIZES = [(1, 2, 1), (2, 7, 3), (3, 40, 13), (2, 100, 33), (1, 180, 150)]


@pytest.fixture(scope="module")
def model():
    return llava(layers=6)


# ---- BTP: arXiv 2505.22038


def farthest(x, chosen, count):
    u = unit(x)
    distance = 1 - u @ u.T
    chosen = list(chosen)
    rest = [i for i in range(len(u)) if i not in chosen]
    if not chosen and count:
        nearest = {i: min((distance[i][j] for j in rest if j != i), default=9.0) for i in rest}
        chosen.append(max(rest, key=lambda i: (nearest[i], -i)))
        count -= 1
    for _ in range(count):
        rest = [i for i in rest if i not in chosen]
        chosen.append(max(rest, key=lambda i: (min(distance[i][j] for j in chosen), -i)))
    return chosen


def btp(x, a, keep, balance, spatial, rebalance, grid=None):
    n, saliency = len(x), a.mean(0)
    wanted = round(np.float32(keep * np.float32(balance)))
    looked = best(saliency, int(wanted * rebalance), range(n))
    early = [i for i in looked if i < keep][:wanted]
    chosen = set(early) | set([i for i in looked if i >= keep][: wanted - len(early)])
    even = min(round(keep * spatial), keep - wanted)
    if even:
        cells, _ = select.cells(torch.tensor([even]), torch.ones(1, n, dtype=torch.bool), grid)
        chosen |= set(cells[0].nonzero()[:, 0].tolist())
    return sorted(farthest(x, chosen, keep - len(chosen)))


@pytest.mark.parametrize(("batch", "n", "keep"), SIZES)
@pytest.mark.parametrize("options", [(0.3, 0.5, 3.7), (0.9, 0.0, 1.5), (1.0, 0.0, 1.2), (0.0, 0.0, 1.0)])
def test_btp(batch, n, keep, options):
    x, a = features(batch, n, 12, seed=n), attention(batch, 3, n)
    got = ts.reduce(
        x,
        get_method("btp", **dict(zip(("balance", "spatial", "rebalance"), options, strict=True))),
        keep,
        last_attention=a,
    )
    assert kept(got) == [btp(row, r, keep, *options) for row, r in zip(x, a, strict=True)]


def test_btp_spreads_over_the_grid():
    x, a = features(2, 36, 12), attention(2, 3, 36)
    got = ts.reduce(x, "btp", 12, last_attention=a, grid=(6, 6))
    assert kept(got) == [btp(row, r, 12, 0.3, 0.5, 3.7, (6, 6)) for row, r in zip(x, a, strict=True)]
    assert kept(got) != kept(ts.reduce(x, "btp", 12, last_attention=a))


def test_btp_corrects_the_bias_to_late_positions():
    """Attention that rises along the row: without the correction the last tokens win, with it early ones come in."""
    x, a = features(1, 40), torch.arange(40.0)[None]
    plain, even = (
        kept(ts.reduce(x, get_method("btp", balance=1.0, spatial=0.0, rebalance=r), 10, last_attention=a))[0]
        for r in (1.0, 4.0)
    )
    assert plain == list(range(30, 40))
    assert even == list(range(10))


def test_farthest_goes_on_from_a_start():
    x = features(3, 150, 8)
    candidates = torch.rand(3, 150, generator=torch.Generator().manual_seed(2)) < 0.8
    start = torch.zeros(3, 150, dtype=torch.bool)
    start[0, [3, 77]] = start[2, :40] = True
    got = distance.farthest(x, torch.tensor([90, 20, 30]), candidates, start)
    assert not bool((got & (start | ~candidates)).any())
    for row, count in enumerate((90, 20, 30)):
        place = (candidates | start)[row].nonzero()[:, 0]
        first = [place.tolist().index(i) for i in start[row].nonzero()[:, 0].tolist()]
        want = farthest(x[row, place], first, count)
        assert set(got[row].nonzero()[:, 0].tolist()) == {int(place[i]) for i in want} - set(
            start[row].nonzero()[:, 0].tolist()
        )


# ---- VMTC: arXiv 2411.15453


@pytest.mark.parametrize(("batch", "n", "keep"), SIZES)
def test_vmtc(batch, n, keep):
    x, a = features(batch, n, 12, seed=n), attention(batch, 3, n)
    got = ts.reduce(x, "vmtc", keep, cls_attention=a)
    out = got.apply(x)
    for row in range(batch):
        importance = a[row].mean(0)
        spare = min(int(keep * 0.5 + 0.5), keep - 1)
        primary = best(importance, keep - spare, range(n))
        rest = [i for i in range(n) if i not in primary]
        candidates = torch.tensor([[i in rest for i in range(n)]])
        chosen, target = cluster.means(torch.tensor(unit(x[row].numpy()))[None], torch.tensor([spare]), candidates, 10)
        centres = chosen[0].nonzero()[:, 0].tolist() if spare else []
        owner = {i: int(target[0, i]) for i in rest} if spare else {}
        want = sorted([*primary, *centres])
        assert kept(got)[row] == want
        for slot, token in enumerate(want):
            members = [i for i in owner if owner[i] == token] or [token]
            w = importance[members] / importance[members].sum()
            torch.testing.assert_close(out[row, slot], (w[:, None] * x[row, members]).sum(0), atol=1e-5, rtol=1e-4)


# ---- AdaToken-3D: arXiv 2505.12782


@pytest.mark.parametrize(("batch", "n", "keep"), SIZES)
def test_adatoken3d(batch, n, keep):
    x, a = features(batch, n, 12), attention(batch, 2, 5, n)
    flow = [[sum(float(a[row, h, t, i]) for h in range(2) for t in range(5)) for i in range(n)] for row in range(batch)]
    assert kept(ts.reduce(x, "adatoken-3d", keep, text_attention=a)) == [sorted(best(f, keep, range(n))) for f in flow]


# ---- CoreMatching: arXiv 2505.19235


def knee(values):
    """How many values exceed that of the point farthest from the line between the ends, by points in the plane."""
    ranked = sorted(values, reverse=True)
    a, b = np.array([0.0, ranked[0]]), np.array([len(ranked) - 1.0, ranked[-1]])
    line = (b - a) / max(np.linalg.norm(b - a), 1e-12)
    off = [np.linalg.norm(p - a - ((p - a) @ line) * line) for p in (np.array([i, v]) for i, v in enumerate(ranked))]
    at = int(np.argmax(np.round(off, 9)))
    return len(ranked) if off[at] < 1e-9 else max(1, sum(v > ranked[at] for v in ranked))


@pytest.mark.parametrize(("batch", "n", "keep"), [*SIZES, (2, 100, 100), (3, 40, 39)])
def test_corematching(batch, n, keep):
    draw = torch.Generator().manual_seed(n)
    neurons, text = torch.randn(batch, n, 50, generator=draw) - 0.5, torch.randn(batch, 6, 50, generator=draw)
    mask = torch.ones(batch, 6, dtype=torch.bool)
    mask[0, :2] = False
    got = ts.reduce(features(batch, n), "corematching", keep, neurons=neurons, text_neurons=text, text_mask=mask)
    for row in range(batch):
        often = [sum(bool(text[row, t, f] > 0) for t in range(6) if mask[row, t]) for f in range(50)]
        core = best(often, 20, [f for f in range(50) if often[f] > 0])
        matched = [sum(bool(neurons[row, i, f] > 0) for f in core) for i in range(n)]
        count = n if keep >= n else min(keep, knee(matched))
        assert kept(got)[row] == sorted(best(matched, count, range(n)))


def test_a_knee_where_there_is_one():
    score = torch.tensor([[9.0, 1.0, 8.0, 0.5, 0.9, 7.0], [1, 1, 1, 1, 1, 1], [6, 5, 4, 3, 2, 1], [9, 1, 1, 3, 3, 3]])
    valid = torch.ones(4, 6, dtype=torch.bool)
    valid[3, 3:] = False
    assert adaptive_count.knee(score, valid).tolist() == [3, 6, 6, 1]


@given(st.lists(st.integers(0, 12), min_size=1, max_size=30))
@settings(max_examples=80, deadline=None)
def test_knees(values):
    assert int(
        adaptive_count.knee(torch.tensor([values], dtype=torch.float32), torch.ones(1, len(values), dtype=torch.bool))
    ) == knee(values)


@pytest.mark.parametrize("images", [(1, 1), (2, 1)])
def test_neurons_are_read_in_front_of_the_stage(model, images):
    """Against the activations of an unreduced pass; behind another stage, over the tokens that it left."""
    inputs, layer = prompt(images), model.model.language_model.layers[2]
    seen = []
    handle = layer.mlp.down_proj.register_forward_pre_hook(lambda _, a: seen.append(a[0]))
    with torch.no_grad():
        model(**inputs)
    handle.remove()
    visual = inputs["input_ids"] == IMAGE
    found = []

    class Spy(type(get_method("corematching"))):
        def score(self, s):
            found.append(s)
            return super().score(s)

    two = ts.Plan([ts.Stage(get_method("random"), 20, "prefill", (3,)), ts.Stage(Spy(), 1.0, layers=(3,))])
    for what in (ts.Stage(Spy(), 1.0, layers=(3,)), two):
        with ts.sieve(model, what, scores=True) as s, torch.no_grad():
            model(**inputs)
        at = s.last.stages[0].reduction.kept
        place = torch.cat([row.nonzero()[:, 0].view(-1, 64) for row in visual]).gather(1, at)
        want = torch.stack([seen[0][r][p] for r, p in zip(s.last.rows, place, strict=True)])
        torch.testing.assert_close(found[-1].neurons, want)
        for i, r in enumerate(s.last.rows):
            ids = inputs["input_ids"][r]
            after = [j for j in range(int(visual[r].nonzero()[0]), len(ids)) if ids[j] != IMAGE]
            torch.testing.assert_close(found[-1].text_neurons[i][found[-1].text_mask[i]], seen[0][r][after])


def test_corematching_runs_in_a_model(model):
    with ts.sieve(model, "corematching", keep=0.9, layers=3) as s, torch.no_grad():
        model.generate(**prompt((1, 2)), max_new_tokens=3, do_sample=False)
    counts = s.last.stages[0].reduction.counts
    assert bool(((counts >= 1) & (counts <= 58)).all())
    assert not model.model.language_model.layers[2].mlp.down_proj._forward_pre_hooks
