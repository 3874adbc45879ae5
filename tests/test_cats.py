"""CATS: thresholds by percentile, and a network that leaves out what is below them."""

import pytest
import torch
from torch import nn

from benchmarks.reference.cats_148 import calibrate, cats, gated
from tests.models import decoder, text


@pytest.fixture(scope="module")
def model():
    return decoder()


def ids(n=24, seed=0):
    return text(n, n, seed=seed)["input_ids"]


def test_thresholds_are_percentiles(model):
    seen = []
    hook = gated(model)[1].gate_proj.register_forward_hook(lambda m, a, out: seen.append(out))
    thresholds = calibrate(model, [ids(), ids(seed=1)], 0.3)
    hook.remove()
    gates = torch.cat([nn.functional.silu(x).abs().flatten() for x in seen])
    assert thresholds[1] == float(gates.sort().values[int(0.3 * len(gates)) - 1])
    with cats(model, thresholds) as meter, torch.no_grad():
        model(ids())
        model(ids(seed=1))
    assert meter.silent[0] / meter.all[0] == pytest.approx(0.3, abs=1e-3)


def test_what_is_below_is_zero(model):
    x = torch.randn(1, 1, 64, generator=torch.Generator().manual_seed(0))
    layer = gated(model)[0]
    gate = nn.functional.silu(layer.gate_proj(x))
    want = layer.down_proj(torch.where(gate.abs() > 0.05, gate, 0.0) * layer.up_proj(x))
    with cats(model, [0.05] * 3) as meter:
        torch.testing.assert_close(layer(x), want)
        torch.testing.assert_close(layer(x.expand(2, 3, 64))[1, 2], want[0, 0])
    assert 0 < meter.sparsity < 1
    assert meter.sparsity == pytest.approx(float((gate.abs() <= 0.05).float().mean()))


def test_the_model_is_what_it_was(model):
    with torch.no_grad():
        plain = model(ids()).logits
        with cats(model, [1e9] * 3):
            assert not torch.equal(model(ids()).logits, plain)
        assert torch.equal(model(ids()).logits, plain)
        with cats(model, [-1.0] * 3) as meter:
            torch.testing.assert_close(model(ids()).logits, plain)
        assert meter.sparsity == 0
    with pytest.raises(ZeroDivisionError), cats(model, [1e9] * 3):
        _ = 1 / 0
    assert "forward" not in gated(model)[0].__dict__


def test_bad_input(model):
    with pytest.raises(ValueError, match=r"sparsity=1\.0; it must be a share from 0 to below 1"):
        calibrate(model, [ids()], 1.0)
    with pytest.raises(ValueError, match="2 thresholds for 3 gated networks"), cats(model, [0.1, 0.2]):
        pass
    with pytest.raises(ValueError, match="Linear has no gated feed-forward network"):
        gated(nn.Linear(2, 2))
