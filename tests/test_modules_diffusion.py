"""What published systems do to the attention of denoisers, against plain formulas."""

import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.reference import entropy_scaling_117 as scaling
from benchmarks.reference import sparse_videogen2_369 as sparse


def drawn(n=40, d=8):
    return torch.randn(3, 2, 2, n, d, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("by_place", [False, True])
@pytest.mark.parametrize("how", [{"top_p": 1.0}, {"density": 1.0}])
def test_all_pairs_are_dense_attention(how, by_place):
    query, key, value = drawn()
    found = sparse.attention(query, key, value, (5, 7), by_place=by_place, **how)
    torch.testing.assert_close(found.output, scaled_dot_product_attention(query, key, value), atol=1e-5, rtol=0)
    assert found.density == pytest.approx(1)
    assert found.covered == pytest.approx(1)


def test_the_mass_is_covered_and_the_density_is_not_passed():
    query, key, value = drawn(200)
    for p in (0.3, 0.6, 0.9):
        assert sparse.attention(query, key, value, (5, 7), top_p=p).covered >= p
    for density in (0.2, 0.5):
        assert sparse.attention(query, key, value, (10, 20), density=density).density <= density


def test_a_token_sees_the_keys_of_its_clusters_alone():
    """Two far groups: each sees itself, which is what attention within them is."""
    g = torch.Generator().manual_seed(0)
    centre = torch.tensor([[6.0, 0.0], [0.0, 6.0]])[torch.tensor([0, 1]).repeat(10)]
    x = (centre + 0.1 * torch.randn(20, 2, generator=g))[None, None]
    value = torch.randn(1, 1, 20, 3, generator=g)
    found = sparse.attention(x, x, value, (2, 2), density=0.5)
    for group in (0, 1):
        at = torch.arange(group, 20, 2)
        inside = scaled_dot_product_attention(x[:, :, at], x[:, :, at], value[:, :, at])
        torch.testing.assert_close(found.output[:, :, at], inside)


def test_bad_input_is_refused():
    query, key, value = drawn()
    for how in ({}, {"top_p": 0.5, "density": 0.5}, {"top_p": 0.0}, {"density": 1.5}):
        with pytest.raises(ValueError, match="give one of them"):
            sparse.attention(query, key, value, (2, 2), **how)
    with pytest.raises(ValueError, match="must be at least 2"):
        scaling.factor(1, 64)


def test_the_factor_is_one_at_the_size_of_training_and_sharpens_above_it():
    assert scaling.factor(64, 64) == 1
    assert scaling.factor(4096, 64) == pytest.approx(math.sqrt(2))
    query, key, _ = drawn(64)
    assert scaling.entropy(query, key, 0.5) < scaling.entropy(query, key, 0.25) < math.log(64)
    assert scaling.entropy(query, key, 0.0) == pytest.approx(math.log(64), abs=1e-4)
    assert scaling.entropy(query, key, 0.3, block=7) == pytest.approx(scaling.entropy(query, key, 0.3))


def test_a_denoiser_runs_under_it_and_is_restored():
    pytest.importorskip("diffusers")
    from tokensieve.bench.compat import denoisers

    model, given = denoisers.build("DiTTransformer2DModel"), denoisers.TINY["DiTTransformer2DModel"].call()
    with torch.no_grad():
        plain = model(**given).sample
        with scaling.scaled(model, trained=64):
            assert torch.equal(model(**given).sample, plain)
        with scaling.scaled(model, trained=16):
            sharper = model(**given).sample
        for block in model.transformer_blocks:  # the same by the weights
            for p in block.attn1.to_q.parameters():
                p.mul_(scaling.factor(64, 16))
        torch.testing.assert_close(model(**given).sample, sharper)
        assert not torch.equal(sharper, plain)
