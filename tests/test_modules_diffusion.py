"""What published systems do to the attention of denoisers, against plain formulas."""

import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.reference import diffmoe_219, dit, flexdit_38, negtome_362, pt_dit_35
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


def tiny(**parts):
    """A small transformer none of whose weights is zero, and what it is called with."""
    torch.manual_seed(0)
    model = dit.DiT(dit.Shape(width=16, mlp=32), **parts)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    g = torch.Generator().manual_seed(1)
    return model.eval(), (torch.randn(6, 8, 8, generator=g), torch.linspace(0, 1, 6), torch.arange(6))


@torch.no_grad()
def test_density_one_is_the_dense_model_and_a_row_has_that_of_its_time():
    model, args = tiny()
    plain = model(*args)
    model.density = dit.Density(1, 3, lambda time: torch.full((len(time),), 8))
    torch.testing.assert_close(model(*args), plain, atol=1e-5, rtol=0)
    model.density = flexdit_38.flexdit().density
    assert model.density.sides(args[1]).tolist() == [6, 6, 5, 5, 4, 4]
    seen = []
    hook = model.layers[1].register_forward_hook(lambda m, a, out: seen.append(tuple(out.shape[:2])))
    got = model(*args)
    hook.remove()
    assert seen == [(2, 16), (2, 25), (2, 36)]
    for i in range(6):
        torch.testing.assert_close(model(*(a[i : i + 1] for a in args)), got[i : i + 1])


@torch.no_grad()
def test_windows_see_themselves_and_then_what_a_shift_brings_together():
    windows = pt_dit_35.Windows(dit.Shape(width=16))
    x = torch.randn(1, 64, 16, generator=torch.Generator().manual_seed(0))
    moved = x.clone()
    moved[0, 0] += 1
    of_plain = (windows._within(windows.plain, x, 0) - windows._within(windows.plain, moved, 0)).abs().sum(2)
    assert of_plain.nonzero()[:, 1].tolist() == [0, 1, 8, 9]
    shifted = (windows._within(windows.shifted, x, 1) - windows._within(windows.shifted, moved, 1)).abs().sum(2)
    assert shifted.nonzero()[:, 1].tolist() == [0, 7, 56, 63]


@torch.no_grad()
def test_every_window_has_one_proxy_through_which_all_tokens_reach_all():
    mixer = pt_dit_35.Proxies(dit.Shape(width=16)).eval()
    at = mixer._drawn()
    assert torch.equal(at, mixer._drawn())
    cell = at // 8 // 2 * 4 + at % 8 // 2
    assert cell.tolist() == list(range(16))
    x = torch.randn(1, 64, 16, generator=torch.Generator().manual_seed(0))
    moved = x.clone()
    moved[0, at[0]] += 1
    assert bool(((mixer(x) - mixer(moved)).abs().sum(2) > 0).all())
    with pytest.raises(ValueError, match="window=3 must divide"):
        pt_dit_35.Proxies(dit.Shape(), 3)


def test_experts_choose_their_share_of_a_batch_and_predict_it_row_by_row():
    torch.manual_seed(0)
    experts = diffmoe_219.PooledExperts(dit.Shape(width=16))
    x = torch.randn(4, 64, 16)
    for _ in range(200):
        experts(x)
    assert experts.capacity.sum() == pytest.approx(4)  # of rows of 64 tokens, one expert a token on average
    assert experts.capacity.max() > experts.capacity.min()
    assert experts.loss.requires_grad
    experts.eval()
    got = experts(x)
    assert experts.capacity.mean() == pytest.approx(1, abs=0.15)
    torch.testing.assert_close(experts(x[1:2]), got[1:2])


def test_tokens_are_pushed_from_the_one_they_are_like():
    reference = torch.eye(3)
    x = torch.tensor([[[2.0, 1.0, 0.0], [1.0, 1.0, 1.0]]])
    got = negtome_362.pushed_tokens(x, reference, 0.5, 0.6)
    assert got.tolist() == [[[2.5, 1.5, 0.0], [1.0, 1.0, 1.0]]]  # the second one's cosine is 0.58
    assert torch.equal(negtome_362.pushed_tokens(x, reference, 0.0, -1.0), x)
    with pytest.raises(ValueError, match="alpha must be at least 0"):
        negtome_362.pushed_tokens(x, reference, -1.0, 0.5)


def test_a_run_is_pushed_from_its_first_picture_in_its_steps_and_restored():
    pytest.importorskip("diffusers")
    from tests.test_diffusion import pipe

    made = pipe()

    def images(guidance=1.0):
        g = torch.Generator().manual_seed(0)
        return made([3, 3], guidance, 4, g, output_type="pt").images

    for guided in (False, True):
        plain = images(1.0 + guided)
        with negtome_362.pushed(made, threshold=-1.0, guided=guided):
            moved = images(1.0 + guided)
        torch.testing.assert_close(moved[0], plain[0])
        assert not torch.allclose(moved[1], plain[1])
        assert torch.equal(images(1.0 + guided), plain)
