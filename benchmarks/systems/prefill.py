"""Checks of systems that read a prompt sparsely, on queries, keys and values of the packaged language model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from benchmarks.systems.bed import Bed, Outcome, check
from benchmarks.systems.cache import model
from tokensieve.parts import anchor, select
from tokensieve.sites import taps
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
        among = torch.arange(start)[None] >= BLOCK
        count = (like[start, :start] & among[0]).sum()[None]
        return select.top(order[None], count, among)[0].float() - 0.5

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
def anchor_attention(bed: Bed) -> Outcome:
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
