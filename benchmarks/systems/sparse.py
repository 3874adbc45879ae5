"""Checks of systems that leave out neurons, steps of a state, or traffic between devices."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, relu, scaled_dot_product_attention

from benchmarks.reference.cats_148 import calibrate, cats, gated
from benchmarks.reference.token_ring_149 import token_ring
from benchmarks.systems.bed import SEED, CheckContext, Outcome, check
from benchmarks.systems.cache import model
from tokensieve.testbed.lm.evaluate import stream

WINDOW, WINDOWS = 512, 12


def windows() -> tuple[list[Tensor], list[Tensor]]:
    """Stretches of held-out text, (1, T): some to calibrate on, and others from between them to measure on."""
    ids = torch.as_tensor(stream(model()[1]))
    starts = torch.linspace(0, len(ids) - WINDOW, 2 * WINDOWS).long().tolist()
    every = [ids[None, start : start + WINDOW] for start in starts]
    return every[::2], every[1::2]


@torch.no_grad()
def perplexity(texts: list[Tensor]) -> float:
    loss = [cross_entropy(model()[0](ids).logits[0, :-1], ids[0, 1:]) for ids in texts]
    return round(math.exp(float(torch.stack(loss).mean())), 4)


@contextmanager
def changed(gate: Callable[[int, Tensor], Tensor]) -> Iterator[None]:
    """Each layer's gate, as it comes out of its projection and activation, replaced by ``gate(layer, projected)``."""
    layers = gated(model()[0])
    for i, layer in enumerate(layers):
        layer.__dict__["forward"] = lambda x, i=i, m=layer: m.down_proj(gate(i, m.gate_proj(x)) * m.up_proj(x))
    try:
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward")


@check(148)
def cats_(bed: CheckContext) -> Outcome:
    """Half of the neurons left out, not tuned: perplexity of held-out text above the full network's by less than with a random
    half left out, and with ReLU in the place of SiLU; on that text within 2 points of the sparsity calibrated on other text."""
    seen, held = windows()
    llm = model()[0]
    thresholds = calibrate(llm, seen, 0.5)
    n: dict[str, Any] = {"full": perplexity(held)}
    with cats(llm, thresholds) as meter:
        n["cats"] = perplexity(held)
    draw = torch.Generator().manual_seed(SEED)
    width = gated(llm)[0].gate_proj.out_features
    some = [torch.randperm(width, generator=draw) < width // 2 for _ in gated(llm)]
    act = gated(llm)[0].act_fn
    with changed(lambda i, x: act(x) * some[i]):
        n["random neurons"] = perplexity(held)
    with changed(lambda i, x: relu(x)):
        n["relu"] = perplexity(held)
    n["sparsity on held-out text"] = round(meter.sparsity, 4)
    best = n["cats"] < min(n["random neurons"], n["relu"])
    return best and abs(meter.sparsity - 0.5) <= 0.02, n


@check(149)
def ring(bed: CheckContext) -> Outcome:
    """8 devices, 1,024 tokens of 16 heads of 64: within 1e-5 of full attention, causal and not; the most bytes in either
    direction of a link below what keys and values take that travel."""
    draw = torch.Generator().manual_seed(SEED)
    q, k, v = (torch.randn(1, 16, 1024, 64, generator=draw) for _ in range(3))
    n: dict[str, Any] = {}
    for name, causal in (("dense", False), ("causal", True)):
        out, ledger = token_ring(q, k, v, 8, causal)
        n[f"{name}: off by"] = float((out - scaled_dot_product_attention(q, k, v, is_causal=causal)).abs().max())
        n[f"{name}: most bytes forward, backward"] = [max(ledger.forward), max(ledger.backward)]
        n[f"{name}: bytes of keys and values passed on"] = ledger.passing
        n[f"{name}: pairs of the busiest device over the mean"] = round(max(ledger.pairs) * 8 / sum(ledger.pairs), 4)
    less = all(max(n[f"{k}: most bytes forward, backward"]) < ledger.passing for k in ("dense", "causal"))
    return less and max(n["dense: off by"], n["causal: off by"]) < 1e-5, n
