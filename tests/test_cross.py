"""Models that attend to images by cross-attention: keys leave behind the first layer that does."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import MllamaConfig, MllamaForConditionalGeneration
from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig

import tokensieve as ts
from tokensieve.bench.compat import tiny_models
from tokensieve.sites.cache.sieved_layer import SievedLayer
from tokensieve.testing import features

CROSS, LENGTH, TILES, PATCHES, NEW = (1, 3, 4), 14, 2, 17, 4
N = TILES * PATCHES
IMAGE = 60
OPTIONS: dict[str, Any] = {
    "max_new_tokens": NEW,
    "do_sample": False,
    "return_dict_in_generate": True,
    "output_logits": True,
}
# Tiles of each image of each prompt.
ONE, TWO = [1], [2, 1]


def build(attn: str = "eager") -> Any:
    torch.manual_seed(0)
    text = MllamaTextConfig(
        vocab_size=IMAGE, hidden_size=32, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, cross_attention_layers=list(CROSS), pad_token_id=0, bos_token_id=1, eos_token_id=None,
        max_position_embeddings=64,
    )  # fmt: skip
    vision = MllamaVisionConfig(
        hidden_size=32, num_hidden_layers=2, num_global_layers=1, attention_heads=4, intermediate_size=48, image_size=16,
        patch_size=4, max_num_tiles=TILES, vision_output_dim=64, intermediate_layers_indices=[0],
        supported_aspect_ratios=[[1, 1], [1, 2], [2, 1]],
    )  # fmt: skip
    config = MllamaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE, attn_implementation=attn)
    model: Any = MllamaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "gate" in name:
                value.fill_(1.0)  # they start closed
            elif any(part in name for part in ("q_proj.w", "k_proj.w")):
                value.mul_(8)
            elif any(part in name for part in ("v_proj.w", "o_proj.w", "projector.w", "head.w")):
                value.mul_(5)
    model.generation_config.eos_token_id = None
    return model


def prompts(*tiles: list[int], images: int = 0) -> dict[str, Tensor]:
    """A batch with padding on the left, in images and in tiles; text stands before, between and behind the images."""
    images = images or max(map(len, tiles))
    out = {
        "input_ids": torch.zeros(len(tiles), LENGTH, dtype=torch.long),
        "attention_mask": torch.zeros(len(tiles), LENGTH, dtype=torch.long),
        "pixel_values": torch.zeros(len(tiles), images, TILES, 3, 16, 16),
        "aspect_ratio_ids": torch.zeros(len(tiles), images, dtype=torch.long),
        "aspect_ratio_mask": torch.zeros(len(tiles), images, TILES, dtype=torch.long),
        "cross_attention_mask": torch.zeros(len(tiles), LENGTH, images, TILES, dtype=torch.long),
    }
    for row, own in enumerate(tiles):
        draw = torch.Generator().manual_seed(len(own))
        start = LENGTH - 6 - 3 * len(own)
        out["input_ids"][row, start:] = torch.randint(3, IMAGE - 1, (LENGTH - start,), generator=draw)
        out["attention_mask"][row, start:] = 1
        out["aspect_ratio_mask"][row, :, 0] = 1
        for i, count in enumerate(own):
            at = start + 1 + 3 * i
            out["input_ids"][row, at] = IMAGE
            out["pixel_values"][row, i, :count] = torch.randn(count, 3, 16, 16, generator=draw)
            out["aspect_ratio_ids"][row, i] = count
            out["aspect_ratio_mask"][row, i, :count] = 1
            out["cross_attention_mask"][row, at:, i, :count] = 1
    return out


def chosen(s: ts.Sieve, inputs: dict[str, Tensor]) -> Tensor:
    """``(B, images * N)`` bool: the image keys that later layers see."""
    assert s.last is not None
    step = s.last.stages[0].reduction
    out = torch.zeros(*inputs["aspect_ratio_ids"].shape, step.n, dtype=torch.bool)
    real = inputs["aspect_ratio_ids"] > 0
    assert real.nonzero()[:, 0].tolist() == s.last.rows
    out[real] = torch.zeros(len(s.last.rows), step.n, dtype=torch.bool).scatter_(1, step.kept, True)
    return out.flatten(1)


@contextmanager
def hiding(model: Any, seen: Tensor) -> Iterator[None]:
    """The plain model with all other image keys masked in the later layers."""

    def hide(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        mask = kwargs["cross_attention_mask"].masked_fill(~seen[:, None, None], torch.finfo(torch.float32).min)
        return args, {**kwargs, "cross_attention_mask": mask}

    layers = [model.model.language_model.layers[i] for i in CROSS[1:]]
    handles = [layer.register_forward_pre_hook(hide, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for h in handles:
            h.remove()


def close(a: Any, b: Any) -> None:
    for x, y in zip(a.logits, b.logits, strict=True):
        torch.testing.assert_close(x, y, atol=1e-4, rtol=1e-3)


def size(layer: Any) -> int:
    return layer.keys.numel() + layer.values.numel()


@pytest.mark.parametrize("tiles", [(ONE,), (TWO, ONE)])
@pytest.mark.parametrize("keep", [1.0, N])
def test_keeping_all_changes_nothing(tiles, keep):
    model, inputs = build(), prompts(*tiles)
    plain = model.generate(**inputs, **OPTIONS)
    with ts.sieve(model, "trimmed-llama", keep=keep) as s:
        out = model.generate(**inputs, **OPTIONS)
    assert s.last is not None
    assert torch.equal(out.sequences, plain.sequences)
    assert all(torch.equal(a, b) for a, b in zip(out.logits, plain.logits, strict=True))


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("tiles", [([2],), (TWO,), (TWO, ONE)])
@pytest.mark.parametrize("keep", [5, 0.5])
def test_the_rest_is_as_if_masked_in_later_layers(attn, tiles, keep):
    model, inputs = build(attn), prompts(*tiles)
    plain = model.generate(**inputs, **OPTIONS)
    with ts.sieve(model, "trimmed-llama", keep=keep) as s:
        out = model.generate(**inputs, **OPTIONS)
    seen = chosen(s, inputs)
    held = torch.tensor([n * PATCHES for own in tiles for n in own])
    left = torch.full_like(held, 5) if keep == 5 else (held.double() * 0.5 + 0.5).floor().long()
    assert s.last is not None
    assert s.last.stages[0].reduction.counts.tolist() == left.tolist()
    with hiding(model, seen):
        expected = model.generate(**inputs, **OPTIONS)
    close(out, expected)
    assert not torch.allclose(expected.logits[0], plain.logits[0], atol=1e-2)
    # Image entries shrink in later layers, and nowhere else.
    for i, (got, whole) in enumerate(zip(out.past_key_values.layers, plain.past_key_values.layers, strict=True)):
        assert isinstance(got, SievedLayer) == (i in CROSS[1:])
        share = int(seen.sum(1).max()) / seen.shape[1] if i in CROSS[1:] else 1
        assert size(got) == round(share * size(whole))
    assert s.last.layer_tokens[CROSS[0]] == pytest.approx(held.float().mean().item())
    assert s.last.layer_tokens[CROSS[0] + 1 :] == pytest.approx([left.float().mean().item()] * (5 - CROSS[0]))


def test_half_of_the_keys_is_half_of_the_bytes():
    model, inputs = build(), prompts([2])
    plain = model.generate(**inputs, **OPTIONS).past_key_values
    with ts.sieve(model, "trimmed-llama", keep=0.5):
        out = model.generate(**inputs, **OPTIONS).past_key_values
    assert [size(out.layers[i]) / size(plain.layers[i]) for i in CROSS] == [1, 0.5, 0.5]


def union(summed: Tensor, keep: int) -> set[int]:
    """Keys of most attention of every head of ``(H, N)``, as many of each head as the budget allows, in loops."""
    order = [head.argsort(descending=True).tolist() for head in summed]
    out: set[int] = set()
    for rank in range(summed.shape[1]):
        fresh = {head[rank] for head in order} - out
        for key in sorted(fresh, key=lambda j: -float(summed[:, j].sum())):
            if len(out) < keep:
                out.add(key)
    return out


@pytest.mark.parametrize("keep", [1, 4, 9])
def test_the_array_form_is_the_definition(keep):
    draw = torch.Generator().manual_seed(keep)
    attention = torch.rand(3, 4, 5, 20, generator=draw)
    mask, text = torch.ones(3, 20, dtype=torch.bool), torch.ones(3, 5, dtype=torch.bool)
    mask[1, ::2] = mask[2, 12:] = text[1, :2] = False
    got = ts.reduce(features(3, 20), "trimmed-llama", keep, text_attention=attention, text_mask=text, mask=mask)
    for b in range(3):
        places = mask[b].nonzero()[:, 0]
        expected = union(attention[b][:, text[b]].sum(1)[:, places], keep)
        assert got.kept[b].tolist() == sorted(places[list(expected)].tolist())


def direct(model: Any, inputs: dict[str, Any], keep: int) -> set[int]:
    """What the first cross-attention layer's weights choose of the last image, summed over the text that sees it."""
    weights: list[Tensor] = []
    cross = model.model.language_model.layers[CROSS[0]].cross_attn
    handle = cross.register_forward_hook(lambda module, args, output: weights.append(output[1]))
    model(**inputs)
    handle.remove()
    (row,) = weights[0]
    sees = inputs["cross_attention_mask"][0, -row.shape[1] :, -1].any(1)  # it may speak of earlier turns too
    return union(row[:, sees, -N:].sum(1), keep)


@pytest.mark.parametrize("keep", [1, 3, 10, 30])
def test_heads_choose_as_defined(keep):
    model, inputs = build(), prompts([2])
    with torch.no_grad(), ts.sieve(model, "trimmed-llama", keep=keep) as s:
        model(**inputs)
    with torch.no_grad():
        assert set(chosen(s, inputs)[0].nonzero()[:, 0].tolist()) == direct(model, inputs, keep)


def test_every_head_is_heard():
    """A head that is quiet on average still names its best key."""
    attention = torch.tensor([[[[0.6, 0.3, 0.08, 0.02]], [[0.1, 0.2, 0.3, 0.4]]]])
    kept = ts.reduce(features(1, 4), "trimmed-llama", keep=2, text_attention=attention).kept
    assert kept.tolist() == [[0, 3]]


def test_a_batch_answers_like_its_rows_alone():
    model = build()
    with ts.sieve(model, "trimmed-llama", keep=6):
        both = model.generate(**prompts(TWO, ONE), **OPTIONS)
        for row, tiles in enumerate((TWO, ONE)):
            # The plain model shows padding images to the text in front of the first image: they are to be there.
            alone = model.generate(**prompts(tiles, images=2), **OPTIONS)
            for got, expected in zip(alone.logits, both.logits, strict=True):
                torch.testing.assert_close(got[0], expected[row], atol=1e-4, rtol=1e-3)


def test_beams_go_on_over_what_is_kept():
    model, inputs = build(), prompts(TWO, ONE)
    beams = {"num_beams": 2, "output_scores": True}
    with ts.sieve(model, "trimmed-llama", keep=6) as s:
        out = model.generate(**inputs, **OPTIONS, **beams)
    seen = chosen(s, {k: v.repeat_interleave(2, 0) for k, v in inputs.items()})
    with hiding(model, seen):
        expected = model.generate(**inputs, **OPTIONS, **beams)
    assert torch.equal(out.sequences, expected.sequences)
    torch.testing.assert_close(out.sequences_scores, expected.sequences_scores, atol=1e-4, rtol=1e-3)


def test_without_a_cache():
    model, inputs = build(), prompts(TWO, ONE)
    with torch.no_grad(), ts.sieve(model, "trimmed-llama", keep=6):
        cached, free = model(**inputs), model(**inputs, use_cache=False)
    torch.testing.assert_close(cached.logits, free.logits)


@pytest.mark.parametrize("keep", [6, 1.0])
def test_a_second_turn_with_a_new_image_goes_on(keep):
    """New image keys join those of the first turn, of which fewer are left."""
    model, first, inputs = build(), prompts(ONE), prompts([2])
    earlier = torch.nn.functional.pad(first["cross_attention_mask"], (0, 0, 0, 1))
    before = first["cross_attention_mask"][:, -1:].expand(-1, LENGTH, -1, -1)
    seen = torch.cat([before, inputs["cross_attention_mask"]], 2)
    later = {
        **inputs,
        "attention_mask": torch.cat([first["attention_mask"], torch.ones_like(inputs["attention_mask"])], 1),
        "cross_attention_mask": torch.cat([earlier, seen], 1),
    }
    with torch.no_grad(), ts.sieve(model, "trimmed-llama", keep=6) as s:
        cache = model(**first).past_key_values
        old = chosen(s, first)
    with torch.no_grad(), ts.sieve(model, "trimmed-llama", keep=keep) as s:
        got = model(**later, past_key_values=cache).logits
        new = chosen(s, inputs)
    assert cache.layers[CROSS[1]].keys.shape[2] == int(old.sum() + new.sum())
    with torch.no_grad(), hiding(model, old):
        plain = model(**first).past_key_values
    with torch.no_grad(), hiding(model, torch.cat([old, new], 1)):
        picked = direct(model, {**later, "past_key_values": copy.deepcopy(plain)}, N if keep == 1.0 else keep)
        expected = model(**later, past_key_values=plain).logits
    assert set(new[0].nonzero()[:, 0].tolist()) == picked
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-3)


def test_afterwards_the_model_is_what_it_was():
    model, inputs = build(), prompts(TWO, ONE)
    hooks = lambda: sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())  # noqa: E731
    plain, before, attn = model.generate(**inputs, **OPTIONS), hooks(), model.config.text_config._attn_implementation
    with ts.sieve(model, "trimmed-llama", keep=3):
        cut = model.generate(**inputs, **OPTIONS)
        assert hooks() > before
    after = model.generate(**inputs, **OPTIONS)
    assert (hooks(), model.config.text_config._attn_implementation) == (before, attn)
    assert all(torch.equal(a, b) for a, b in zip(after.logits, plain.logits, strict=True))
    assert not torch.equal(cut.logits[0], plain.logits[0])


def test_a_prompt_without_images_passes_through():
    model = build()
    inputs = {k: v for k, v in prompts(ONE).items() if k in ("input_ids", "attention_mask")}
    inputs["input_ids"][inputs["input_ids"] == IMAGE] = 3
    plain = model.generate(**inputs, **OPTIONS)
    with ts.sieve(model, "trimmed-llama", keep=3) as s:
        assert torch.equal(model.generate(**inputs, **OPTIONS).sequences, plain.sequences)
    assert s.last is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ts.sieve(build(), "divprune", keep=4), "cross-attention"),
        (lambda: ts.sieve(build(), "fastv", keep=4), "site='cross'"),
        (lambda: ts.sieve(tiny_models.model("llava"), "trimmed-llama", keep=4), "0 layers"),
        (lambda: ts.sieve(build(), "trimmed-llama", keep=ts.Keep(average=0.5)), "per image"),
        (lambda: ts.sieve(build(), "trimmed-llama", keep=ts.Keep(tokens=9, per="prompt")), "per image"),
        (lambda: ts.sieve(build(), "trimmed-llama", keep=4, layers=(3,)), "leave it out"),
        (lambda: ts.sieve(build(), ts.Plan([ts.stage("trimmed-llama", 9), ts.stage("trimmed-llama", 4)])), "alone"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
