"""Checks of trained parts that spend less cache: each trains what it needs on the spot."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.reference.decoder import Attend, Decoder, causal, full
from benchmarks.reference.nats_79 import NAtS, Ragged
from benchmarks.reference.pod_291 import PoD, blocks, similarity
from benchmarks.systems import small
from benchmarks.systems.bed import SEED, CheckContext, Outcome, check
from tokensieve.testbed import lm

LENGTH, EACH, SINKS = 1024, 6, 4


def seen_within(window: int, length: int, sinks: int = SINKS) -> Tensor:
    """(length, length): what sinks and a window of recent tokens, themselves included, let a query see."""
    age = torch.arange(length)[:, None] - torch.arange(length)
    return (age >= 0) & ((age < window) | (torch.arange(length) < sinks))


def masked_by(mask: Tensor):
    def attend(layer: int, x: Tensor, q: Tensor, k: Tensor, v: Tensor, memory: dict | None = None) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1])

    return attend


class HeavyHitters:
    """Token by token, each head keeps the entries that gathered most attention and the recent ones, half and half."""

    def __init__(self, budget: int):
        self.budget = budget

    def __call__(self, layer: int, x: Tensor, q: Tensor, k: Tensor, v: Tensor, memory: dict[Any, Any] | None = None):
        assert memory is not None
        if layer in memory:
            keys, values, scores = memory[layer]
            k, v = torch.cat([keys, k], 2), torch.cat([values, v], 2)
            scores = F.pad(scores, (0, 1))
        else:
            scores = k.new_zeros(*k.shape[:3])
        grouped = q.unflatten(1, (k.shape[1], -1))
        a = (grouped @ k[:, :, None].transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        scores = scores + a.sum((2, 3))
        mixed = (a @ v[:, :, None]).flatten(1, 2)
        if k.shape[2] > self.budget:
            old = scores[:, :, : k.shape[2] - self.budget // 2]
            keep = torch.arange(k.shape[2]) != old.argmin(-1, keepdim=True)
            k, v = (t[keep].unflatten(0, (*keep.shape[:2], -1)) for t in (k, v))
            scores = scores[keep].unflatten(0, (*keep.shape[:2], -1))
        memory[layer] = (k, v, scores)
        return mixed


def token_by_token(model: Decoder, attend: Any) -> Any:
    def logits(ids: Tensor) -> Tensor:
        memory: dict[Any, Any] = {}
        return torch.cat([model(ids[:, i : i + 1], attend, memory, i) for i in range(ids.shape[1])], 1)

    return logits


@check(79)
@torch.no_grad()
def nats(bed: CheckContext) -> Outcome:
    """The packaged model, frozen, its tokens' roles trained: held-out perplexity within 3% of full attention at under
    half the pairs, below sinks and a window, and below heavy hitters, at as many; the bytes really held as counted."""
    model = Decoder.of_llama(lm.load()[0]).requires_grad_(False)
    layer_roles = NAtS(model.stack.shape)

    def loss(ids: Tensor) -> Tensor:
        text = small.next_token(model(ids, layer_roles), ids)
        return text + 0.1 * torch.stack(list(layer_roles.visible.values())).mean()

    small.train("79 roles", layer_roles, loss, small.windows(small.tokens(600_000), 512), 120, 3e-3, 4)
    rows = small.held_out(LENGTH, EACH)
    n: dict[str, Any] = {"full": small.perplexity(lambda ids: model(ids), rows)}
    shares: list[float] = []

    def sparse(ids: Tensor) -> Tensor:
        logits = model(ids, layer_roles)
        shares.append(float(torch.stack(list(layer_roles.visible.values())).mean()))
        return logits

    n["nats"] = small.perplexity(sparse, rows)
    n["share"] = round(sum(shares) / len(shares), 4)
    pairs = n["share"] * LENGTH * (LENGTH + 1) / 2
    window = next(w for w in range(LENGTH + 1) if seen_within(w, LENGTH).sum() >= pairs)
    budget = next(w for w in range(LENGTH + 1) if min(w, LENGTH) * (LENGTH - w) + w * (w + 1) / 2 >= pairs)
    n["window"] = small.perplexity(lambda ids: model(ids, masked_by(seen_within(window, LENGTH))), rows)
    n["heavy hitters"] = small.perplexity(token_by_token(model, HeavyHitters(budget)), rows, 6)
    every: dict[Any, Any] = {}
    kept: dict[Any, Any] = {}
    for attend, memory in ((full, every), (layer_roles, kept)):
        model(rows, attend, memory)
    held = sum(layer.bytes() for layer in kept.values() if isinstance(layer, Ragged))
    n["bytes held at the end"] = round(held / sum(layer.bytes() for layer in every.values()), 4)
    better = n["nats"] < n["window"] and n["nats"] < n["heavy hitters"]
    return n["nats"] <= 1.03 * n["full"] and n["share"] < 0.5 and better, n


@torch.no_grad()
def attention_rows(model: Decoder, ids: Tensor, last: int = 64) -> Tensor:
    """(layers, B, H, last, T): how the last tokens attend."""
    rows: list[Tensor] = []

    def attend(layer: int, x: Tensor, q: Tensor, k: Tensor, v: Tensor, memory: dict | None = None) -> Tensor:
        scores = q[:, :, -last:] @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).transpose(-1, -2)
        hidden = ~causal(last, k.shape[2])
        rows.append((scores * q.shape[-1] ** -0.5).masked_fill(hidden, -torch.inf).softmax(-1))
        return full(layer, x, q, k, v, memory)

    model(ids, attend)
    return torch.stack(rows)


@check(291)
@torch.no_grad()
def pod(bed: CheckContext) -> Outcome:
    """A model of 8 layers, then tuned on as it is, with blocks of like layers, or with a window of as many bytes:
    about a third of the bytes saved, held-out perplexity within 2% of full attention and below the window's."""
    length, sinks, recent = 256, 4, 28
    ids = small.tokens(400_000)
    base = Decoder.of_llama(lm.build("deep", SEED, torch.bincount(ids, minlength=2048).float()))
    make = small.windows(ids, length)

    def tune(model: Decoder, attend: Attend, name: str, steps: int, rate: float, skip: int = 0) -> None:
        def loss(rows: Tensor) -> Tensor:
            return small.next_token(model(rows, attend), rows)

        small.train(f"291 {name}", model, loss, lambda i: make(i + skip), steps, rate, 8)

    tune(base, full, "base", 100, 1.3e-3)
    found = blocks(similarity(attention_rows(base, torch.stack([make(i) for i in range(8)]))))
    n: dict[str, Any] = {"blocks": found}
    sharing = PoD(found, sinks, recent)
    rows = small.held_out(length, 32)
    held: dict[str, int] = {}
    for name, attend in (("full", full), ("pod", sharing)):
        memory: dict[Any, Any] = {}
        base(rows[:2], attend, memory)
        held[name] = sum(layer.bytes() for layer in memory.values())
    n["bytes saved"] = round(1 - held["pod"] / held["full"], 4)
    window = masked_by(seen_within(round(held["pod"] / held["full"] * length) - SINKS, length))
    for name, attend in (("full", full), ("pod", sharing), ("window", window)):
        model = copy.deepcopy(base)
        tune(model, attend, name, 30, 4e-4, 100 * 8)
        n[name] = small.perplexity(lambda ids, m=model, a=attend: m(ids, a), rows, 16)
    return n["bytes saved"] > 0.3 and n["pod"] <= 1.02 * n["full"] and n["pod"] < n["window"], n
