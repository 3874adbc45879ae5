"""Vcc's segments: against the definition as loops, and what must hold of them always."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tokensieve as ts
from tests.models import llava, prompt
from tokensieve.methods.prefill.vcc import around
from tokensieve.parts.select import segments


def randoms(*shapes, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=g) for shape in shapes]


def starts(eyes, x, keep, coarse):
    """One row, all valid, by halving: the set of places where segments begin."""
    n, d = x.shape
    keep = min(keep, n)
    levels = max(0, math.ceil(math.log2(n / max(1, keep * coarse))))
    size = 2**levels
    begins = set(range(0, n, size))
    alive = sorted(begins)
    for level in range(levels, 0, -1):
        size = 2**level
        able = [b for b in alive if b + size // 2 < n]
        look = {b: float((eyes @ x[b : min(b + size, n)].mean(0) * d**-0.5).logsumexp(0)) for b in able}
        count = -(-(keep - len(begins)) // level)
        chosen = sorted(able, key=lambda b: -look[b])[:count]
        begins |= {b + size // 2 for b in chosen}
        alive = sorted([*chosen, *(b + size // 2 for b in chosen)])
    return begins


@pytest.mark.parametrize(("n", "keep"), [(64, 16), (61, 16), (100, 9), (37, 30), (16, 2), (9, 1)])
def test_segments_are_those_of_the_definition(n, keep):
    eyes, x = randoms((2, 5, 8), (2, n, 8))
    seeing, valid = torch.ones(2, 5, dtype=torch.bool), torch.ones(2, n, dtype=torch.bool)
    got = segments.refine(3 * eyes, seeing, x, torch.tensor([keep, keep]), valid, 0.5)
    for b in range(2):
        want = starts(3 * eyes[b], x[b], keep, 0.5)
        have = set(got[b].nonzero()[:, 0].tolist())
        assert want <= have
        assert len(have) == keep


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 70), st.integers(1, 80), st.floats(0.05, 1.0), st.integers(0, 5))
def test_every_row_gets_what_it_asked_for(n, keep, coarse, seed):
    eyes, x = randoms((3, 4, 6), (3, n, 6), seed=seed)
    valid = torch.rand(3, n, generator=torch.Generator().manual_seed(seed)) > 0.4
    valid[:, 0] = True
    counts = torch.tensor([keep, 1, n])
    start = segments.refine(eyes, torch.ones(3, 4, dtype=torch.bool), x, counts, valid, coarse)
    assert start.sum(1).tolist() == counts.minimum(valid.sum(1)).tolist()
    assert not bool((start & ~valid).any())
    for b in range(3):
        row = slice(b, b + 1)
        alone = segments.refine(eyes[row], torch.ones(1, 4, dtype=torch.bool), x[row], counts[row], valid[row], coarse)
        assert torch.equal(alone[0], start[b])
    owner = segments.begins(start, valid)
    assert bool((owner[valid] >= 0).all())
    assert bool(start.gather(1, owner.clamp(min=0))[valid].all())


def test_what_the_text_looks_at_stays_whole():
    x = torch.zeros(1, 64, 8)
    x[0, 20] = torch.ones(8) * 5
    r = ts.reduce(x, "vcc", 12, text=torch.ones(1, 2, 8))
    segment = (r.owner[0] == r.owner[0, 20]).nonzero()[:, 0].tolist()
    assert segment == [20]
    sizes = r.sizes()[0]
    assert int(sizes.max()) > 4
    assert int(sizes.sum()) == 64


def test_a_layer_around_pooled_tokens_is_restored():
    """A layer that maps tokens one by one and linearly changes each by what the mean of its segment changes."""
    x, w = randoms((2, 20, 6), (6, 6))
    r = ts.reduce(x, "vcc", 7, text=randoms((2, 3, 6), seed=1)[0])
    out = around(lambda y: y + y @ w, x, r)
    for b in range(2):
        for i in range(20):
            mean = x[b, r.owner[b] == r.owner[b, i]].mean(0)
            torch.testing.assert_close(out[b, i], x[b, i] + mean @ w)
    whole = ts.reduce(x, "vcc", 20, text=x[:, :3])
    torch.testing.assert_close(around(lambda y: y + y @ w, x, whole), x + x @ w)


def test_in_a_model():
    model, inputs = llava(), prompt((1, 1))
    with ts.sieve(model, "vcc", keep=12, layers=2) as s, torch.no_grad():
        model(**inputs)
    assert s.last.stages[0].reduction.counts.tolist() == [12, 12]
