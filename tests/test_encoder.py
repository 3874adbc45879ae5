"""The encoder site on CLIP, SigLIP, DINOv2 and ViT, bare and under a head."""

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTForImageClassification,
)

import tokensieve as ts
from tests.models import llava, prompt
from tokensieve.bench.compat import tiny_models
from tokensieve.bench.compat.check import Case
from tokensieve.core.needs import only_given
from tokensieve.sites.model.structure import find
from tokensieve.testing.memory import Largest

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 4,
}
KINDS = {
    "clip": (CLIPVisionModel, CLIPVisionConfig, 1),
    "siglip": (SiglipVisionModel, SiglipVisionConfig, 0),
    "dinov2": (Dinov2ForImageClassification, Dinov2Config, 1),
    "registers": (Dinov2WithRegistersModel, Dinov2WithRegistersConfig, 5),
    "vit": (ViTForImageClassification, ViTConfig, 1),
}


@pytest.fixture(params=KINDS)
def encoder(request):
    model, config, specials = KINDS[request.param]
    torch.manual_seed(0)
    made = model(config(**SMALL)).eval()
    return made, specials


PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def outputs(model):
    with torch.no_grad():
        return model(pixel_values=PIXELS, output_hidden_states=True)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["tome", "divprune", "atc", "token-transforming"])
def test_keeping_all_changes_nothing(encoder, name, attn):
    model, _ = encoder
    model.set_attn_implementation(attn)
    plain = outputs(model)
    with ts.sieve(model, name, keep=64, site="encoder"):
        kept = outputs(model)
    for a, b in zip(plain.values(), kept.values(), strict=True):
        for x, y in zip(a, b, strict=True) if isinstance(a, tuple) else [(a, b)]:
            assert torch.equal(x, y)


@pytest.mark.parametrize("name", ["tome", "random", "uniform", "pool"])
def test_shapes_stay_and_tokens_fall(encoder, name):
    model, specials = encoder
    seen = []
    blocks = find(model).vision.layers
    hooks = [b.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1] - specials)) for b in blocks]
    plain = outputs(model)
    seen.clear()
    with ts.sieve(model, name, keep=16, site="encoder") as s:
        fewer = outputs(model)
    for h in hooks:
        h.remove()
    # ToMe's leave in the last block too, in front of its MLP; what left behind that block would save nothing.
    assert seen == ([64, 52, 40, 28] if name == "tome" else [64, 48, 32, 16])
    assert s.last.stages[0].reduction.counts.tolist() == [16, 16]
    assert s.last.stages[0].grid == (8, 8)
    assert [h.shape for h in fewer.hidden_states] == [h.shape for h in plain.hidden_states]
    assert torch.isfinite(fewer[0]).all()
    assert torch.equal(outputs(model)[0], plain[0])


def test_layers_may_be_chosen(encoder):
    model, _ = encoder
    with ts.sieve(model, "uniform", keep=16, site="encoder", layers=(1,)) as s:
        hidden = outputs(model).hidden_states
    plain = outputs(model).hidden_states
    assert torch.equal(hidden[1], plain[1])
    assert not torch.equal(hidden[3], plain[3])
    assert s.last.stages[0].reduction.m == 16
    with pytest.raises(ValueError, match="layers 0 to 3"):
        ts.sieve(model, "uniform", keep=16, site="encoder", layers=(7,))
    with pytest.raises(ValueError, match="only site='encoder'"):
        ts.sieve(model, "uniform", keep=16, site="handoff")
    with pytest.raises(ValueError, match="site='handoff' has no place in it; only site='encoder' does"):
        ts.sieve(model, ts.Plan([ts.stage("tome", 16), ts.stage("uniform", 8, site="handoff")]))


@pytest.mark.parametrize("name", [n for n in ts.list_methods(site="encoder") if not only_given(ts.get_method(n).needs)])
def test_a_method_reads_what_the_block_says_at_which_it_stands(name):
    """Also one that names another layer, which it reads at the handoff."""
    model = ViTForImageClassification(ViTConfig(**SMALL)).eval()
    with ts.sieve(model, name, keep=16, site="encoder", layers=(1,)) as s:
        outputs(model)
    assert s.last.stages[0].reduction.counts.tolist() == [16, 16]


def test_merged_duplicates_leave_the_output_as_it_was():
    """An image of equal patches: with proportional attention, merging equal tokens is exact wherever positions are equal too."""
    torch.manual_seed(0)
    model = ViTForImageClassification(ViTConfig(**SMALL)).eval()
    with torch.no_grad():
        model.vit.embeddings.position_embeddings.zero_()
    flat = torch.ones(1, 3, 32, 32)
    with torch.no_grad():
        plain = model(pixel_values=flat).logits
        with ts.sieve(model, "tome", keep=16):
            merged = model(pixel_values=flat).logits
    torch.testing.assert_close(merged, plain, atol=1e-5, rtol=1e-4)


def test_in_front_of_a_language_model_the_prompt_shrinks_too():
    model = llava()
    inputs = prompt((1, 2))
    with ts.sieve(model, "tome", keep=16) as s:
        out = model.generate(**inputs, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
    assert s.last.layer_tokens == [16] * 4
    reduction = s.last.stages[0].reduction
    assert (reduction.n, reduction.m, reduction.batch) == (64, 16, 3)
    assert bool((reduction.owner >= 0).all())
    text = (inputs["attention_mask"].sum(1) - torch.tensor([64, 128]) + torch.tensor([16, 32])).max()
    assert out.past_key_values.layers[0].keys.shape[2] == text + 3


def test_beams_repeat_what_the_encoder_reduced():
    model = llava()
    inputs = prompt((2, 1))
    with ts.sieve(model, "tome", keep=16):
        out = model.generate(**inputs, max_new_tokens=4, do_sample=False, num_beams=3)
    assert out.shape[0] == 2


@pytest.mark.parametrize("which", ["gemma4", "llama4", "deepseek_ocr2", "step3p7", "lfm2_vl", "minicpmv4_6"])
def test_an_encoder_that_is_told_where_tokens_stand_is_refused(which):
    model = tiny_models.model(which)
    with pytest.raises(ValueError, match=r"positions and borders of their own\); use site='handoff'"):
        ts.sieve(model, "divprune", keep=0.5, site="encoder")
    ts.sieve(model, "divprune", keep=0.5)


def test_an_encoder_that_makes_visual_tokens_itself_is_refused():
    if "granite_docling" not in tiny_models.names():
        pytest.skip("this release of transformers has no Granite-Docling")
    model = tiny_models.model("granite_docling")
    with pytest.raises(
        ValueError, match="makes its visual tokens inside the encoder, of all patches; use site='handoff'"
    ):
        ts.sieve(model, "tome", keep=0.5, site="encoder")
    ts.sieve(model, "divprune", keep=0.5)


@pytest.mark.parametrize("name", ["uniform", "tome"])
def test_features_that_an_encoder_makes_itself_are_made_of_all_tokens_again(name):
    case = Case("ovis2")
    with torch.no_grad(), ts.sieve(case.model, name, keep=0.5, site="encoder") as s:
        case.model(**case.inputs)
    assert s.last.stages[0].reduction.m == 32
    assert s.last.layer_tokens[-1] == 32.0


@pytest.mark.parametrize("name", ["uniform", "tome"])
def test_patches_that_an_encoder_hides_by_place_are_refused(name):
    case = Case("idefics2")
    seen = case.inputs["pixel_attention_mask"] = torch.ones_like(case.inputs["pixel_attention_mask"])
    with torch.no_grad(), ts.sieve(case.model, name, keep=0.5, site="encoder"):
        try:
            case.model(**case.inputs)
        except ValueError as refusal:
            assert "encode the pictures under it" in str(refusal)  # noqa: PT017 (of most releases it is none)
            pytest.skip("this release's Idefics2 hands on other features than those its encoder gave")
        seen[0, 0, :, -4:] = 0
        with pytest.raises(ValueError, match=r"hides some patches by a mask of 64 places.*use site='handoff'"):
            case.model(**case.inputs)


@pytest.mark.parametrize("name", ["tome", "random", "pool"])
def test_no_tensor_holds_a_number_for_each_pair_of_tokens(name):
    wide = {**SMALL, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, "num_hidden_layers": 2}
    model = ViTForImageClassification(ViTConfig(**{**wide, "image_size": 256})).eval()  # 4,096 patches
    with torch.no_grad(), ts.sieve(model, name, r=500), Largest() as seen:
        model(pixel_values=torch.randn(1, 3, 256, 256))
    assert seen.elements <= 4096**2 / 8  # blocks of rows, whose number does not grow
