"""LongMamba: the recurrence and its filter against loops."""

import math

import pytest
import torch

from benchmarks.reference.longmamba_265 import SelectiveSSM, scan, thresholds


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return SelectiveSSM(16)


@pytest.mark.parametrize("n", [1, 2, 7, 32])
def test_scan_is_the_recurrence(n):
    g = torch.Generator().manual_seed(0)
    keep, add = torch.rand(2, n, 3, 4, generator=g), torch.randn(2, n, 3, 4, generator=g)
    state, want = torch.zeros(2, 3, 4), []
    for t in range(n):
        state = keep[:, t] * state + add[:, t]
        want.append(state)
    torch.testing.assert_close(scan(keep, add), torch.stack(want, 1))


def test_skipped_tokens_leave_no_trace(layer):
    """Where every channel skips a token, later outputs are as if it had not been there, but for what the convolution saw."""
    x = torch.randn(1, 20, 16, generator=torch.Generator().manual_seed(1))
    out, step = layer(x)
    same, _ = layer(x, torch.zeros(32))
    assert torch.equal(out, same)
    none, _ = layer(x, torch.full((32,), math.inf))
    inside = layer.into(x).chunk(2, dim=2)
    near = torch.nn.functional.silu(layer.near(inside[0].transpose(1, 2))[..., :20].transpose(1, 2))
    torch.testing.assert_close(none, layer.out(layer.through * near * torch.nn.functional.silu(inside[1])))
    assert step.shape == (1, 20, 32)


def test_channels_of_short_memory_are_left_alone(layer):
    """Only the channels above the decay get a threshold, and only they change."""
    x = torch.randn(3, 24, 16, generator=torch.Generator().manual_seed(2))
    _, step = layer(x)
    got = thresholds(step, layer.rates, 96, decay=0.2)
    left = (step.sum(1).mean(0)[:, None] * layer.rates).exp().mean(1)
    assert torch.equal(got > 0, left > 0.2)
    assert 0 < int((got > 0).sum()) < 32
    hidden = []
    hook = layer.out.register_forward_pre_hook(lambda m, a: hidden.append(a[0]))
    longer = torch.randn(1, 96, 16, generator=torch.Generator().manual_seed(3))
    layer(longer)
    layer(longer, got)
    hook.remove()
    changed = (hidden[0] != hidden[1]).flatten(0, 1).any(0)
    assert not bool(changed[got == 0].any())
    assert bool(changed[got > 0].any())


def test_thresholds_are_those_of_the_definition():
    step = torch.rand(2, 10, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    got = thresholds(step, torch.full((3, 2), -1e-3, dtype=torch.float64), 40)
    for e in range(3):
        each = []
        for text in step:
            order = sorted(text[:, e].tolist(), reverse=True)
            stretched = []
            for i in range(40):
                at = min(max((i + 0.5) / 4 - 0.5, 0), 9)
                low = int(at)
                high = min(low + 1, 9)
                stretched.append(order[low] + (at - low) * (order[high] - order[low]))
            total, i = 0.0, 0
            while total + stretched[i] <= sum(order):
                total += stretched[i]
                i += 1
            each.append(stretched[i])
        assert float(got[e]) == pytest.approx(sum(each) / 2)
    assert not bool(thresholds(step, -torch.ones(3, 2), 10).any())


def test_bad_input():
    with pytest.raises(ValueError, match="length=0; it must be a number of tokens, at least 1"):
        thresholds(torch.rand(1, 4, 2), -torch.ones(2, 2), 0)
