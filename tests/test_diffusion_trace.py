"""Attention rows of denoisers, from the queries and keys of their own attention."""

import pytest
import torch

import tokensieve as ts

pytest.importorskip("diffusers")
from diffusers.models.attention_processor import AttnProcessor

from tokensieve.bench.compat import denoisers
from tokensieve.sites.diffusion import tracing

JOINT = ("SD3Transformer2DModel", "FluxTransformer2DModel", "QwenImageTransformer2DModel", "ZImageTransformer2DModel")


def traced(name, **how):
    model, call = denoisers.build(name), denoisers.TINY[name].call()
    with torch.no_grad():
        plain = model(**call, return_dict=False)[0]
        with ts.trace(model, **how) as t:
            same = model(**call, return_dict=False)[0]
    same, plain = (torch.stack(x) if isinstance(x, list) else x for x in (same, plain))
    assert torch.equal(same, plain)
    return t


@pytest.mark.parametrize("name", JOINT)
def test_what_image_and_text_receive_of_the_image_is_all(name):
    """In joint attention; where the sides were mistaken it would not add up, or not be of the right length."""
    t = traced(name)
    joint = {m.module for m in t.of("text")}
    assert joint
    for module in joint:
        (text,), (image,) = t.of("text", module), t.of("received", module)
        total = text.values.sum(1).mean(1) + image.values.sum(1)
        torch.testing.assert_close(total, torch.ones_like(total))
    assert t.heat("text").shape[-2:] == (8, 8)


def test_rows_are_those_of_the_eager_kernel():
    name, scores = "UNet2DConditionModel", {}
    model, call = denoisers.build(name), denoisers.TINY[name].call()
    model.set_attn_processor(AttnProcessor())
    for key, m in model.named_modules():
        if hasattr(m, "get_attention_scores"):
            m.get_attention_scores = lambda *a, key=key, plain=m.get_attention_scores: scores.setdefault(key, plain(*a))
    with torch.no_grad(), ts.trace(model) as t:
        model(**call)
    assert all(type(p) is AttnProcessor for p in model.attn_processors.values())
    assert {m.module for m in t.maps} == set(scores)
    for m in t.maps:
        rows = scores[m.module].unflatten(0, (2, -1)).mean(1)
        expected = rows.transpose(1, 2) if m.kind == "text" else rows.mean(1)
        torch.testing.assert_close(m.values, expected)


def test_blocks_make_no_difference(monkeypatch):
    whole = traced("SD3Transformer2DModel")
    monkeypatch.setattr(tracing, "BLOCK", 7)
    for a, b in zip(whole.maps, traced("SD3Transformer2DModel").maps, strict=True):
        torch.testing.assert_close(a.values, b.values)


def test_what_is_asked_for_is_what_comes():
    t = traced("PixArtTransformer2DModel", rows="text", layers=["transformer_blocks.1.attn2"])
    assert [(m.module, m.kind, m.grid, tuple(m.values.shape)) for m in t.maps] == [
        ("transformer_blocks.1.attn2", "text", (8, 8), (2, 6, 64))
    ]
    with pytest.raises(ValueError, match="no map of kind 'received'"):
        t.heat("received")


def test_bad_input_is_refused():
    model = denoisers.build("SanaTransformer2DModel")
    call = denoisers.TINY["SanaTransformer2DModel"].call()
    with pytest.raises(ValueError, match=r"rows=.*they are some of text, received"):
        ts.trace(model, "keys")
    with pytest.raises(ValueError, match=r"are no attention of SanaTransformer2DModel; its are .*attn2"):
        ts.trace(model, layers=["attn9"])
    with torch.no_grad(), pytest.warns(UserWarning, match="no softmax attention"), ts.trace(model) as t:
        model(**call)
    assert len(t.without) == 3
    assert len(t.of("text")) == 3
    with torch.no_grad(), pytest.raises(ValueError, match="no softmax"), ts.trace(model, layers=t.without):
        model(**call)
    model = denoisers.build("MochiTransformer3DModel")
    call = denoisers.TINY["MochiTransformer3DModel"].call()
    with torch.no_grad(), pytest.raises(ValueError, match="attends row by row"), ts.trace(model):
        model(**call)
    assert "forward" not in vars(model.transformer_blocks[0].attn1)
