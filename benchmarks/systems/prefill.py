"""Checks of systems that read a prompt sparsely, on queries, keys and values of the packaged language model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import mean
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

import tokensieve as ts
from benchmarks.systems.bed import SEED, CheckContext, Outcome, check
from benchmarks.systems.cache import model
from tokensieve.core.reduction import Reduction
from tokensieve.parts import select
from tokensieve.parts.attention import anchor
from tokensieve.parts.select import segments
from tokensieve.sites.model import taps
from tokensieve.testbed import lm
from tokensieve.testbed.lm.evaluate import stream

LENGTH, TEXTS, BLOCK, STEP = 2048, 2, 16, 4
GROUP = BLOCK * STEP
GAPS = (1.0, 2.0, 4.0)


@torch.no_grad()
def heads() -> Iterator[tuple[Tensor, Tensor, Tensor, float]]:
    """Queries, keys and values ``(N, d)`` of every head of every layer, over held-out texts, and the scale of their scores."""
    llm, tokenizer = model()
    ids = torch.as_tensor(stream(tokenizer))
    for start in torch.linspace(0, len(ids) - LENGTH, TEXTS).long().tolist():
        calls: list[taps.Call] = []
        undo = [taps.attach(layer.self_attn, observe=calls.append) for layer in llm.model.layers]
        llm(ids[None, start : start + LENGTH])
        for detach in undo:
            detach()
        for call in calls:
            share = call.query.shape[1] // call.key.shape[1]
            for h, query in enumerate(call.query[0]):
                yield query, call.key[0, h // share], call.value[0, h // share], call.scale


def always() -> Tensor:
    """``(N, N)`` bool: the first block and each group's own keys, which every pattern reads."""
    place = torch.arange(LENGTH)
    near = place[:, None] // GROUP == place // GROUP
    return (near | (place < BLOCK)) & (place <= place[:, None])


def by_group(worth: Callable[[int], Tensor]) -> Tensor:
    """``(N, N)`` bool: beside what is always read, keys in front of each group that are worth 0 or more to it."""
    out = always()
    for start in range(GROUP, LENGTH, GROUP):
        out[start : start + GROUP, :start] |= worth(start) >= 0
    return out


def anchored(query: Tensor, key: Tensor, scale: float, gap: float) -> Tensor:
    real = torch.ones(1, LENGTH, dtype=torch.bool)

    def worth(start: int) -> Tensor:
        stop = start + GROUP
        q, k = query[None, None, start:stop], key[None, None, :stop]
        return anchor.stripes(q, k, scale, real[:, :stop], BLOCK, gap)[0, 0]

    return by_group(worth)


def best_blocks(query: Tensor, key: Tensor, scale: float, like: Tensor) -> Tensor:
    """As many keys for each group as ``like`` reads, from blocks in the order of the score of their means."""
    means = key.unflatten(0, (-1, BLOCK)).mean(1)

    def worth(start: int) -> Tensor:
        order = (query[start : start + GROUP].mean(0) @ means[: start // BLOCK].T * scale).repeat_interleave(BLOCK)
        candidates = torch.arange(start)[None] >= BLOCK
        count = (like[start, :start] & candidates[0]).sum()[None]
        return select.top(order[None], count, candidates)[0].float() - 0.5

    return by_group(worth)


def lines(query: Tensor, key: Tensor, scale: float, like: Tensor) -> Tensor:
    """Columns and diagonals of most attention from the last group's queries: equally many of each, as few as read no fewer
    pairs than ``like``."""
    place, last = torch.arange(LENGTH), torch.arange(LENGTH - GROUP, LENGTH)
    score = (query[last] @ key.T * scale).masked_fill(place > last[:, None], -torch.inf).softmax(-1)
    away = (last[:, None] - place).clamp(min=0)
    slash = torch.zeros(LENGTH).scatter_add_(0, away.flatten(), score.flatten())
    columns, offsets = score.sum(0).argsort(descending=True), slash.argsort(descending=True)
    low, high, base = 0, LENGTH, always()
    distance = (place[:, None] - place).clamp(min=0)

    def made(count: int) -> Tensor:
        column, offset = (torch.zeros(LENGTH, dtype=torch.bool) for _ in range(2))
        column[columns[:count]], offset[offsets[:count]] = True, True
        return base | ((column | offset[distance]) & (place <= place[:, None]))

    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if made(middle).sum() >= like.sum() else (middle + 1, high)
    return made(low)


@check(153)
@torch.no_grad()
def anchor_attention(bed: CheckContext) -> Outcome:
    """Groups of 4 blocks of 16 queries, 2,048 tokens of held-out text, all heads of all layers: at three gaps, attention mass
    recalled above that of the best blocks and of columns and diagonals that read as many pairs; errors of outputs beside it."""
    names = ("anchor-attention", "block top-k", "vertical-slash")
    found: dict[tuple[float, str], list[tuple[float, float, float]]] = {(g, n): [] for g in GAPS for n in names}
    place = torch.arange(LENGTH)
    causal = place <= place[:, None]
    for query, key, value, scale in heads():
        score = (query @ key.T * scale).masked_fill(~causal, -torch.inf)
        rows = score.softmax(-1)
        dense = rows @ value
        for gap in GAPS:
            ours = anchored(query, key, scale, gap)
            masks = (ours, best_blocks(query, key, scale, ours), lines(query, key, scale, ours))
            for name, mask in zip(names, masks, strict=True):
                out = score.masked_fill(~mask, -torch.inf).softmax(-1) @ value
                off = float((out - dense).norm() / dense.norm())
                share = float(mask.sum() / causal.sum())
                found[gap, name].append((float((rows * mask).sum(1).mean()), off, share))
    n: dict[str, Any] = {}
    shown = True
    for gap in GAPS:
        recalled = {name: mean(x[0] for x in found[gap, name]) for name in names}
        n |= {f"gap {gap:g}: pairs read": round(mean(x[2] for x in found[gap, names[0]]), 4)}
        n |= {f"gap {gap:g}: {name}": round(x, 4) for name, x in recalled.items()}
        n |= {f"gap {gap:g}: {name} output error": round(mean(x[1] for x in found[gap, name]), 4) for name in names}
        shown &= all(recalled[names[0]] > recalled[name] for name in names[1:])
    return shown, n


EYES, SHARE, SAMPLES, FACTS = 32, 1 / 8, 4, 8


def pooled(query: Tensor, key: Tensor, value: Tensor, owns: tuple[Tensor, Tensor], step: Reduction | None) -> Tensor:
    """Attention of ``(H, P, d)`` queries over a context, ``(G, n, d)``, pooled or whole, and over their own keys and values."""
    if step is not None:
        key, value = (
            step.apply(x.transpose(0, 1).flatten(1)[None])[0].unflatten(1, (len(x), -1)) for x in (key, value)
        )
        key, value = key.transpose(0, 1), value.transpose(0, 1)
    share, (k, v) = len(query) // len(key), owns
    key, value = (torch.cat(pair, 1).repeat_interleave(share, 0) for pair in ((key, k), (value, v)))
    score = query @ key.transpose(1, 2) * query.shape[2] ** -0.5
    if step is not None:
        score[..., : step.m] += step.sizes()[0].log()
    own = torch.ones(query.shape[1], query.shape[1], dtype=torch.bool).tril()
    score[..., -query.shape[1] :] = score[..., -query.shape[1] :].masked_fill(~own, -torch.inf)
    return score.softmax(-1) @ value


def halves(query: Tensor, key: Tensor, keep: int) -> Reduction:
    """Vcc's segments of a context's keys, one for all heads; the eyes are the queries of every head."""
    heads, eyes, d = query.shape
    width = len(key) * d
    wide = torch.zeros(heads, eyes, width)
    for h in range(heads):
        at = h // (heads // len(key)) * d
        wide[h, :, at : at + d] = query[h] * (width / d) ** 0.5
    text, x = wide.flatten(0, 1)[None], key.transpose(0, 1).flatten(1)[None]
    return ts.reduce(x, "vcc", keep, text=text)


def seconds(n: int) -> float:
    """Of pooling ``n`` tokens to 256 and attending to them, the least of three."""
    draw = torch.Generator().manual_seed(SEED)
    key, value, query = (torch.randn(1, m, 64, generator=draw) for m in (n, n, EYES))
    taken = []
    for _ in range(3):
        start = perf_counter()
        step = ts.reduce(key, "vcc", 256, text=query)
        pooled(query, key, value, (query, query), step)
        taken.append(perf_counter() - start)
    return min(taken)


@check(385)
@torch.no_grad()
def vcc(bed: CheckContext) -> Outcome:
    """Facts in 2,048 tokens of held-out text, pooled to an eighth: errors of the attention output of the question's tokens below
    those of uniform pooling, on average over layers; four times the tokens take less than 6 times as long (quadratic: 16)."""
    llm, tokenizer = model()
    rng, text, say = np.random.default_rng(SEED), stream(tokenizer), lm.speech(tokenizer)
    off: dict[str, list[float]] = {"vcc": [], "uniform pooling": []}
    for i in range(SAMPLES):
        sample = lm.facts(rng, say, text[i * LENGTH : (i + 1) * LENGTH], LENGTH, FACTS)
        calls: list[taps.Call] = []
        undo = [taps.attach(layer.self_attn, observe=calls.append) for layer in llm.model.layers]
        llm(torch.as_tensor(sample.ids[None, : sample.context + EYES]))
        for detach in undo:
            detach()
        for call in calls:
            query, cut = call.query[0, :, sample.context :], sample.context
            key, value = call.key[0, :, :cut], call.value[0, :, :cut]
            owns = (call.key[0, :, cut:], call.value[0, :, cut:])
            keep = round(cut * SHARE)
            start = torch.arange(cut)[None] * keep // cut
            start = torch.nn.functional.pad(start.diff(dim=1) > 0, (1, 0), value=True)
            even = Reduction.merge(start, segments.begins(start, torch.ones_like(start)))
            dense = pooled(query, key, value, owns, None)
            for name, step in (("vcc", halves(query, key, keep)), ("uniform pooling", even)):
                out = pooled(query, key, value, owns, step)
                off[name].append(float((out - dense).norm() / dense.norm()))
    n: dict[str, Any] = {f"{name}: output error": round(mean(x), 4) for name, x in off.items()}
    layers = len(llm.model.layers)
    n["by layer"] = [[round(mean(x[i::layers]), 4) for i in range(layers)] for x in off.values()]
    n["time at 64k against 16k tokens"] = round(seconds(65536) / seconds(16384), 2)
    return n["vcc: output error"] < n["uniform pooling: output error"] and n["time at 64k against 16k tokens"] < 6, n
