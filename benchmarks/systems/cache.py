"""Checks of the family cache: effects that need a real model on SmolLM2, all else on the packaged language model."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor

import tokensieve as ts
from benchmarks.cache import follow, made
from benchmarks.systems import smollm2
from benchmarks.systems.bed import SEED, CheckContext, Outcome, check
from tokensieve.bench import paired as stats
from tokensieve.core.method import Method
from tokensieve.methods.cache.kvcompose import KVCompose
from tokensieve.parts import score
from tokensieve.sites.cache.evicted_layer import EvictedLayer
from tokensieve.testbed import lm
from tokensieve.testbed.lm.evaluate import stream

CONTEXT, NEXT, EACH = 1024, 256, 2


@functools.cache
def model() -> tuple[Any, Any]:
    return lm.load()


def method(what: str | Method) -> Method:
    return what if isinstance(what, Method) else made(what, model()[1])


@functools.cache
def _perplexity(what: Method, keep: float) -> float:
    with ts.sieve(model()[0], what, keep=keep, site="cache", seed=SEED):
        kinds = lm.perplexity(*model(), context=CONTEXT, continuation=NEXT, samples=EACH, seed=SEED, batch=EACH)
    return mean(kind["perplexity"] for kind in kinds.values())


def perplexity(what: str | Method, keep: float) -> float:
    """Of what follows a compressed context, the mean over three kinds of held-out text."""
    return round(_perplexity(method(what), keep), 4)


def window() -> np.ndarray:
    """One stretch of held-out Python, (1, T)."""
    return stream(model()[1], "code")[None, : CONTEXT + NEXT]


@torch.no_grad()
def held(what: Method, keep: float) -> tuple[list[Tensor], Any]:
    """The columns of the entries that each layer keeps, (G, M), and the cache."""
    with ts.sieve(model()[0], what, keep=keep, site="cache", seed=SEED):
        cache = ts.prefill(model()[0], {"input_ids": torch.as_tensor(window()[:, :CONTEXT])})
    layers = [layer for layer in cache.layers if isinstance(layer, EvictedLayer)]
    return [layer.entries()[2][0] for layer in layers], cache


@torch.no_grad()
def outputs(what: Method | None, keep: float) -> list[Tensor]:
    """What attention puts out for the tokens behind a context, layer by layer."""
    seen: dict[int, Tensor] = {}
    hooks = [
        layer.self_attn.register_forward_hook(lambda _m, _a, out, i=i: seen.__setitem__(i, out[0]))
        for i, layer in enumerate(model()[0].model.layers)
    ]
    try:
        with ts.sieve(
            model()[0], what if what is not None else ts.Plan([]), **({} if what is None else {"keep": keep})
        ):
            follow(model()[0], window(), CONTEXT)
    finally:
        for hook in hooks:
            hook.remove()
    return list(seen.values())


def output_error(what: Method, keep: float) -> float:
    """By how much attention outputs are off, as a share of their length, the mean over layers."""
    pairs = zip(outputs(what, keep), outputs(None, 1.0), strict=True)
    return round(mean(float((a - b).norm() / b.norm()) for a, b in pairs), 4)


@check(375)
def a2sf(bed: CheckContext) -> Outcome:
    """SmolLM2, 20% kept: perplexity below undecayed accumulation, by an interval over texts; kept positions later as the factor
    falls; factor one is H2O."""
    n = smollm2.told("a2sf@0.2", "h2o@0.2", "random@0.2")
    places = [
        mean(x.float().mean().item() for x in held(ts.get_method("a2sf", factor=f), 0.2)[0]) for f in (1, 0.99, 0.9)
    ]
    n["mean position at 1, 0.99, 0.9"] = [round(p, 1) for p in places]
    one, other = (held(m, 0.2)[0] for m in (ts.get_method("a2sf", factor=1.0), ts.get_method("h2o")))
    n["factor one is h2o"] = all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    return smollm2.less("a2sf@0.2", "h2o@0.2") and places[0] < places[1] < places[2] and n["factor one is h2o"], n


@check(336)
def vatp(bed: CheckContext) -> Outcome:
    """SmolLM2, half kept: perplexity below H2O, by an interval over texts; attention outputs of the packaged model closer to the
    full cache's."""
    n = smollm2.told("vatp@0.5", "h2o@0.5", "random@0.5")
    n |= {f"{name} output error": output_error(ts.get_method(name), 0.5) for name in ("vatp", "h2o")}
    return smollm2.less("vatp@0.5", "h2o@0.5") and n["vatp output error"] < n["h2o output error"], n


@check(366)
def caote(bed: CheckContext) -> Outcome:
    """The predicted error of one eviction equals the measured change within 1e-6; SmolLM2, 20% kept: perplexity of H2O with it
    below H2O, by an interval over texts."""
    draw = torch.Generator().manual_seed(SEED)
    a = torch.rand(1, 1, 32, generator=draw, dtype=torch.float64).softmax(-1)
    values = torch.randn(1, 32, 16, generator=draw, dtype=torch.float64)
    told = score.eviction_error(a, values, torch.ones(1, 32, dtype=torch.bool))[0, 0]
    rest = ~torch.eye(32, dtype=torch.bool)
    without = torch.stack([(a[0, 0][r] / a[0, 0][r].sum()) @ values[0][r] for r in rest])
    off = (told - (without - a[0, 0] @ values[0]).norm(dim=1)).abs().max().item()
    n = smollm2.told("h2o + caote@0.2", "h2o@0.2", "random@0.2") | {"error off by": off}
    return smollm2.less("h2o + caote@0.2", "h2o@0.2") and off < 1e-6, n


@check(179)
def ems(bed: CheckContext) -> Outcome:
    """SmolLM2, a fifth kept: facts told in the text and perplexity better than H2O and a window of recent tokens, by intervals
    over texts."""
    names = ("ems@0.2", "h2o@0.2", "streamingllm@0.2")
    return smollm2.less(*names) and smollm2.more(*names), smollm2.told(*names, "random@0.2")


@dataclass(frozen=True)
class OneSet(KVCompose):
    """The same attention, but one set of positions for all heads, and as many in every layer."""

    unit = "token"
    shared = False


@check(204)
def kvcompose(bed: CheckContext) -> Outcome:
    """A quarter kept: perplexity below one set of positions and even layers by the same score; one tensor a layer."""
    n: dict[str, Any] = {"kvcompose": perplexity("kvcompose", 0.25), "one set": perplexity(OneSet(), 0.25)}
    cache = held(ts.get_method("kvcompose"), 0.25)[1]
    n["rectangular"] = all(layer.pages is None for layer in cache.layers)
    n["entries of layers"] = [layer.keys.shape[2] for layer in cache.layers]
    return n["kvcompose"] < n["one set"] and n["rectangular"], n


@check(266)
def zipcache(bed: CheckContext) -> Outcome:
    """SmolLM2, 4 and 2 bits: perplexity below 2 bits for all and below accumulated attention, by intervals over texts; probes
    find over 80% of what all queries rank on top."""
    names = ("zipcache@0.4", "2 bits@0.4", "by accumulation@0.4")
    n = smollm2.told(*names, "random@0.12")
    n["overlap"] = smollm2.overlap(0.4)
    return smollm2.less(*names) and n["overlap"] > 0.8, n


@check(351)
@torch.no_grad()
def sepllm(bed: CheckContext) -> Outcome:
    """Half kept: perplexity below StreamingLLM; one pass under a mask agrees with eviction within 1e-4."""
    n: dict[str, Any] = {name: perplexity(name, 0.5) for name in ("sepllm", "streamingllm")}
    kept = held(method("sepllm"), 0.5)[0][0][0]
    total = CONTEXT + NEXT - 1
    sees = torch.ones(total, total, dtype=torch.bool).tril()
    sees[CONTEXT:, :CONTEXT] = False
    sees[CONTEXT:, kept] = True
    mask = torch.zeros(1, 1, total, total).masked_fill_(~sees, torch.finfo(torch.float32).min)
    ids = window()
    masked = model()[0](torch.as_tensor(ids[:, :-1]), attention_mask=mask).logits[:, CONTEXT - 1 :]
    with ts.sieve(model()[0], method("sepllm"), keep=0.5):
        evicted = follow(model()[0], ids, CONTEXT)[0]
    off = (masked - evicted).abs().max().item()
    return n["sepllm"] < n["streamingllm"] and off < 1e-4, n | {"masked against evicted": off}


@check(24)
def tidaldecode(bed: CheckContext) -> Outcome:
    """SmolLM2, facts asked token by token: within a point of the full cache reading under 15%, above a window and one early
    choice, by intervals over texts."""
    found = smollm2.decoded()
    n: dict[str, Any] = {f"{name}, % right": round(100 * mean(some), 1) for name, some in found.items()}
    shown = mean(found["tidaldecode"]) >= mean(found["full"]) - 0.01
    for other in ("full", "window", "once"):
        between = stats.paired(found["tidaldecode"], found[other])
        n[f"less {other}"] = smollm2.interval(between, 100, 1)
        shown = shown and (other == "full" or (between.distinguishable and between.mean > 0))
    method, keep = smollm2.READING["tidaldecode"]
    assert method is not None
    n["share read"] = round(mean(keep if role == "read" else 1.0 for role in method.layer_roles(30)), 4)
    return shown and n["share read"] < 0.15, n
