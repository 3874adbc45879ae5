"""TokenRing: equal to full attention, and a ledger that is what can be counted by hand."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention as attention

from benchmarks.reference.token_ring_149 import token_ring


def randoms(*shapes, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=g) for shape in shapes]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("devices", "n"), [(1, 7), (2, 16), (4, 32), (3, 31), (5, 57)])
@pytest.mark.parametrize("heads", [4, 2])
def test_it_is_full_attention(devices, n, causal, heads):
    q, k, v = randoms((2, 4, n, 8), (2, heads, n, 8), (2, heads, n, 8))
    out, ledger = token_ring(4 * q, k, v, devices, causal)
    wide = (x.repeat_interleave(4 // heads, 1) for x in (k, v))
    torch.testing.assert_close(out, attention(4 * q, *wide, is_causal=causal), rtol=1e-5, atol=1e-5)
    assert sum(ledger.pairs) == (n * (n + 1) // 2 if causal else n * n)


def test_the_ledger():
    q, k, v = randoms((1, 8, 32, 16), (1, 8, 32, 16), (1, 8, 32, 16))
    _, ledger = token_ring(q, k, v, 4)
    block = 8 * 8 * 16 * 4  # tokens of a device, heads, numbers, bytes
    assert ledger.steps == 4
    assert ledger.forward == [block, block, block, 0]
    assert ledger.backward == [0, *[block + 8 * 8 * 4] * 3]
    assert ledger.passing == 2 * block
    assert ledger.pairs == [8 * 32] * 4


def test_causal_work_is_even():
    q, k, v = randoms((1, 2, 64, 4), (1, 2, 64, 4), (1, 2, 64, 4))
    _, ledger = token_ring(q, k, v, 4, causal=True)
    assert max(ledger.pairs) == min(ledger.pairs)


@pytest.mark.parametrize(("devices", "causal", "most"), [(0, False, 6), (7, False, 6), (4, True, 3)])
def test_too_many_devices(devices, causal, most):
    q, k, v = randoms((1, 1, 6, 4), (1, 1, 6, 4), (1, 1, 6, 4))
    with pytest.raises(ValueError, match=f"devices={devices} for 6 tokens; it must be from 1 to {most}"):
        token_ring(q, k, v, devices, causal)
