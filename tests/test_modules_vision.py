"""Modules around encoders of images that nobody calls by name, the tower's dense probes, and digits among clutter."""

import pytest
import torch

import tokensieve as ts
from benchmarks import cluttered
from benchmarks.reference import bavit_304, clsclip_161, laco_200, patterns_333
from tokensieve.core.reduction import Reduction
from tokensieve.testbed import probes

DRAW = torch.Generator().manual_seed(5)


@pytest.fixture(scope="module")
def tower():
    return probes.tower()


def test_probes_see_what_patches_show(tower):
    heads, scenes = probes.load_probes(), probes.held_out(6)
    full = probes.seen(tower, heads, scenes)
    assert full.miou > 0.8
    assert full.name > 0.8
    assert full.colour > 0.9
    with ts.sieve(tower, "random", keep=144):
        fewer = probes.seen(tower, heads, scenes)
    assert fewer.name < full.name - 0.2
    assert probes.FILE.stat().st_size < 100_000


def test_the_tower_ends_where_its_features_leave(tower):
    model = probes.load()[0].model.vision_tower
    pixels = probes.pixels(probes.held_out(1))
    with torch.no_grad():
        whole = model(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]
        assert torch.allclose(tower(pixel_values=pixels).last_hidden_state, whole, atol=1e-5)


def test_guesses_are_scored_by_union_and_by_things():
    scenes = probes.held_out(2)
    right = {k: v.clamp(min=0) for k, v in probes._labels(scenes).items()}
    assert probes.score(right, scenes) == probes.DenseScore(1.0, 1.0, 1.0)
    nothing = {k: torch.zeros_like(v) for k, v in right.items()}
    found = probes.score(nothing, scenes)
    assert found.name == found.colour == 0
    assert found.miou < 0.25


def test_a_merge_begins_as_the_mean_of_two_by_two():
    x = torch.randn(2, 16, 8, generator=DRAW)
    made = laco_200.PatchMerge(8)(x)
    assert torch.allclose(made[:, 0], x[:, [0, 1, 4, 5]].mean(1), atol=1e-6)
    assert torch.allclose(made[:, 3], x[:, [10, 11, 14, 15]].mean(1), atol=1e-6)
    assert not torch.allclose(laco_200.PatchMerge(8, shortcut=False)(x)[:, 0], made[:, 0], atol=1e-2)


def test_a_classifier_learns_which_patches_show_something():
    patches = torch.randn(64, 16, 8, generator=DRAW)
    shows = patches[..., 0] > 0.5
    model = bavit_304.fit(patches, shows, steps=60)
    with torch.no_grad():
        likely = model(patches)
    assert likely.shape == (64, 16)
    assert likely[shows].mean() > likely[~shows].mean() + 0.3


def test_radial_masks_lie_around_the_middle():
    near = patterns_333.radial(6, patterns_333.RADIAL["chebyshev"]).view(6, 6)
    assert near[2:4, 2:4].min() > near[0].max()
    corner = patterns_333.radial(6, patterns_333.RADIAL["manhattan"]).view(6, 6)
    assert corner[0, 0] < corner[0, 2]


def test_overlap_and_agreement_are_one_with_oneself():
    keys = torch.randn(3, 36, 8, generator=DRAW)
    a, b = ts.reduce(keys, "atc", 9), ts.reduce(keys, "uniform", 9, grid=(6, 6))
    assert patterns_333.overlap(patterns_333.kept(a), patterns_333.kept(a)) == 1
    assert patterns_333.overlap(patterns_333.kept(a), ~patterns_333.kept(a)) == 0
    assert patterns_333.agreement(a, a) == pytest.approx(1)
    whole = Reduction.merge(torch.arange(36).expand(3, -1) < 1, torch.zeros(3, 36, dtype=torch.long))
    assert patterns_333.agreement(a, whole) == pytest.approx(0)
    assert b.m == 9


def test_text_stands_in_the_place_of_the_class_token_in_shallow_blocks():
    torch.manual_seed(0)
    pair = clsclip_161.Pair(9).eval()
    pictures, texts = torch.rand(2, 3, 48, 48, generator=DRAW), torch.tensor([[0, 5], [1, 6]])
    plain = clsclip_161.guided(pair, pictures, texts, 0)
    assert plain.shape == (2, 64)
    assert not torch.allclose(plain, clsclip_161.guided(pair, pictures, texts, 1))
    seen = []
    pair.blocks[0].register_forward_pre_hook(lambda block, args: seen.append(args[0][:, 0]))
    clsclip_161.guided(pair, pictures, texts, 2)
    assert torch.equal(seen[0], pair.read(texts))
    texts = torch.tensor([[0, 5], [0, 5]])
    assert float(pair.loss(pictures, texts)) == pytest.approx(
        float(torch.tensor(2.0).log()), rel=1e-3
    )  # both are right


def test_canvases_are_drawn_anew_from_their_seed():
    one, again, other = cluttered.canvases(3, 1), cluttered.canvases(3, 1), cluttered.canvases(3, 1, "test")
    assert torch.equal(one.images, again.images)
    assert not torch.equal(one.images, other.images)
    assert one.images.shape == (3, 1, 64, 64)
    assert bool(((one.covered.sum(1) * 64 - 28**2).abs() < 1).all())
