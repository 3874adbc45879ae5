"""Similarity: how alike all tokens are, held at once where that is small and computed when needed where it is not."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tokensieve.parts import select
from tokensieve.parts.numeric import twins
from tokensieve.parts.select import distance

Rows = Callable[[Tensor], Tensor]
"""From positions ``(B, P)`` to what the tokens there have to do with R others, ``(B, P, R)``."""

ROWS = 512
HELD = 4096 * 4096
"""The largest number of pairs, of all rows together, that are held."""


@torch.no_grad()
def dots(unit: Tensor, more: Tensor | None = None) -> Rows:
    """Dot products of tokens ``(B, N, d)`` with all tokens, then with the rows of ``more``, ``(B, T, d)``; equal for twins."""
    b, n, _ = unit.shape
    first = twins.firsts(unit)

    def lead(place: Tensor) -> Tensor:
        return place if first is None else first.gather(1, place)

    extra = 0 if more is None else more.shape[1]
    if b * n * (n + extra) > HELD:
        targets = unit if more is None else torch.cat([unit, more], 1)
        return lambda place: select.take(unit, lead(place)) @ targets.transpose(1, 2)
    table = unit.new_empty(b, n, n + extra)
    if more is not None:
        table[:, :, n:] = unit @ more.transpose(1, 2)
    for start in range(0, n, ROWS):
        stop = min(start + ROWS, n)
        # Half of the pairs are computed; both ends see the same value.
        table[:, start:stop, start:n] = unit[:, start:stop] @ unit[:, start:].transpose(1, 2)
        table[:, stop:n, start:stop] = table[:, start:stop, stop:n].transpose(1, 2)
    return lambda place: select.take(table, lead(place))


def blocks(candidates: Tensor) -> list[Tensor]:
    """All positions, in blocks ``(B, up to 512)``."""
    every = torch.arange(candidates.shape[1], device=candidates.device).expand(len(candidates), -1)
    return list(every.split(ROWS, 1))


@torch.no_grad()
def unlike(
    score: Tensor, metric: Tensor, count: Tensor, candidates: Tensor, threshold: float, penalty: float
) -> Tensor:
    """Greedy choice by score, less ``penalty`` for each earlier pick whose cosine is above ``threshold``."""

    def join(cost: Tensor, like: Tensor) -> Tensor:
        return cost + penalty * (like > threshold).sum(2)

    return distance.greedy(normalize(metric, dim=-1), -score, count, candidates, join)


def pairs(metric: Tensor, chosen: Tensor, threshold: float) -> Tensor:
    """``(B,)``: pairs of chosen tokens whose cosine is above ``threshold``."""
    place, valid = select.compact(chosen)
    unit = normalize(select.take(metric, place), dim=-1)
    above = (unit @ unit.transpose(1, 2) > threshold) & valid[:, :, None] & valid[:, None]
    return above.triu(1).sum((1, 2))
