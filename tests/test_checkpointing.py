"""Gradient checkpointing: the gradient of a sieved model is the one without it, wherever and whenever the backward pass runs."""

import copy
import functools
import inspect
import threading

import pytest
import torch
from torch import nn
from transformers.models.clip.modeling_clip import CLIPEncoderLayer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

import tokensieve as ts
from tokensieve.bench.compat import tiny_models
from tokensieve.bench.compat.check import Case

NAMES = ("llava", "qwen2_5_vl", "qwen3_vl", "internvl")
ENCODERS = ("llava", "vipllava", "paligemma", "deepseek_vl")  # between whose encoder's blocks tokens can leave
SITES = {
    "handoff": ("divprune", {}),
    "reads the encoder": ("hiprune", {}),
    "prefill": ("fastv", {"layers": 2}),
    "encoder": ("tome", {}),
    "focus": ("cmai", {}),
    "heads": ("yopo", {"off": (1,)}),
}


WHERE = [(name, site) for site in SITES for name in (ENCODERS if site == "encoder" else NAMES)]
SOME = [(name, site) for name, site in WHERE if site in ("prefill", "encoder", "focus")]
made = functools.cache(Case)


def backward(loss, thread):
    if not thread:
        return loss.backward()
    worker = threading.Thread(target=loss.backward)
    worker.start()
    return worker.join()


def gradients(case, site, reentrant=None, inside=True, thread=False, between=None):
    """Of the loss over the text behind the pictures; checkpointed where ``reentrant`` is said."""
    name, where = SITES[site]
    model = copy.deepcopy(case.model).train()
    if reentrant is not None:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        if reentrant:
            model.enable_input_require_grads()
    ids = case.inputs["input_ids"]
    gone = (case.inputs["attention_mask"] == 0) | (ids == tiny_models.IMAGE)
    asked = {**case.inputs, "labels": ids.masked_fill(gone, -100), "use_cache": False}
    if case.name == "paligemma":
        asked["token_type_ids"] = torch.zeros_like(ids)
    with ts.sieve(model, name, keep=case.keep if name != "yopo" else 1, **where):
        loss = model(**asked).loss
        if between is not None:
            with torch.no_grad():
                model(**between)
        if inside:
            backward(loss, thread)
    if not inside:
        backward(loss, thread)
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def same(name, site, **how):
    case = made(name)
    plain, got = gradients(case, site), gradients(case, site, **how)
    assert plain.shape == got.shape
    assert float((plain - got).norm() / plain.norm()) < 1e-6


@pytest.mark.parametrize(("name", "site"), WHERE)
@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("reentrant", [True, False])
def test_the_gradient_is_the_one_without_checkpoints(name, site, inside, reentrant):
    same(name, site, reentrant=reentrant, inside=inside)


@pytest.mark.parametrize(("name", "site"), SOME)
@pytest.mark.parametrize("inside", [True, False])
def test_the_backward_pass_may_run_in_another_thread(name, site, inside):
    same(name, site, reentrant=False, inside=inside, thread=True)


@pytest.mark.parametrize(("name", "site"), SOME)
def test_another_pass_may_run_in_between(name, site):
    same(name, site, reentrant=False, between=made(name).prompts.batch((2, 1)))


@pytest.mark.parametrize("site", ["handoff", "prefill", "encoder", "focus"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_releases_that_checkpoint_a_call_with_its_hooks(monkeypatch, site, reentrant):
    """They run the hooks of a layer inside of what is checkpointed."""
    for layer in (LlamaDecoderLayer, CLIPEncoderLayer):

        def call(self, *args, plain=nn.Module.__call__, **kwargs):
            if self.gradient_checkpointing and self.training:
                return self._gradient_checkpointing_func(functools.partial(plain.__get__(self), **kwargs), *args)
            return plain(self, *args, **kwargs)

        monkeypatch.setattr(layer, "forward", inspect.unwrap(layer.forward))
        monkeypatch.setattr(layer, "__call__", call)
    same("llava", site, reentrant=reentrant, inside=False)


def test_what_was_forgotten_by_a_pass_that_failed_is_not_recomputed():
    model, site = copy.deepcopy(made("llava").model).train(), made("llava")
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    layer = model.model.language_model.layers[1]

    def fails(module, args):
        raise KeyError("on purpose")

    with ts.sieve(model, "cmai", keep=site.keep):
        handle = layer.register_forward_pre_hook(fails)
        with pytest.raises(KeyError, match="on purpose"):
            model(**site.inputs, use_cache=False)
        handle.remove()
    got = model(**site.inputs, use_cache=False).logits
    got.sum().backward()
    again = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    model.gradient_checkpointing_disable()
    model(**site.inputs, use_cache=False).logits.sum().backward()
    plain = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(again, plain, strict=True))
