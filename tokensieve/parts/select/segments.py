"""Segments: a row of tokens in runs of 1, 2, 4, ... of them, fine where something looks."""

from __future__ import annotations

import torch
from torch import Tensor

from tokensieve.parts import select
from tokensieve.parts.numeric import twins


def refine(eyes: Tensor, seeing: Tensor, x: Tensor, keep: Tensor, valid: Tensor, coarse: float) -> Tensor:
    """Where segments begin, ``(B, N)`` bool, exactly ``keep[b]`` of them: coarse at first, halved where the eyes look (Vcc).

    From the longest segments to pairs, those are halved to whose mean the eyes attend most, an equal share of the budget at
    each length. What the last halves leave over goes to single tokens, at equal steps. Time and memory are linear in N.

    Args:
        eyes: ``(B, P, D)`` queries; seeing: ``(B, P)`` bool, False at padding of theirs.
        x: ``(B, N, D)`` keys; valid: ``(B, N)`` bool; runs are of valid tokens, as if the others were not there.
        keep: ``(B,)`` long.
        coarse: the share of the budget in which the longest segments may begin.
    """
    batch = len(x)
    at, filled = select.compact(valid)
    n_valid, keep = filled.sum(1), keep.minimum(filled.sum(1))
    # The shortest length that needs no more than its share.
    first = (n_valid.double() / (keep * coarse).clamp(min=1)).clamp(min=1).log2().ceil().long()
    levels = int(first.amax())
    width = -(-at.shape[1] // 2**levels) * 2**levels
    place = torch.arange(width, device=x.device).expand(batch, -1)
    flat = torch.where(filled[..., None], x.gather(1, at[..., None].expand(-1, -1, x.shape[2])), 0.0)
    sums = [torch.cat([flat, flat.new_zeros(batch, width - at.shape[1], x.shape[2])], 1)]
    for _ in range(levels):
        sums.append(sums[-1].unflatten(1, (-1, 2)).sum(2))
    start = (place % 2 ** first[:, None] == 0) & (place < n_valid[:, None])
    alive = start[:, :: 2**levels]
    for level in range(levels, 0, -1):
        size = 2**level
        begin = place[:, ::size]
        alive = torch.where(first[:, None] == level, start[:, ::size], alive & (first[:, None] > level))
        half = alive & (begin + size // 2 < n_valid[:, None])
        count = (n_valid[:, None] - begin).clamp(min=1, max=size)
        run = sums[level] / count[..., None]
        rows = eyes @ run.transpose(1, 2) * x.shape[2] ** -0.5
        look = rows.masked_fill(~seeing[..., None], -torch.inf).logsumexp(1).nan_to_num(0.0)
        look = twins.level(look, twins.firsts(run))
        left = keep - start.sum(1)
        chosen = select.top(look, (left + level - 1).div(level, rounding_mode="floor"), half)
        at_half = torch.zeros_like(start)
        at_half[:, size // 2 :: size] = chosen
        start = start | at_half
        alive = chosen.repeat_interleave(2, 1)
    start = start | select.evenly(keep - start.sum(1), ~start & (place < n_valid[:, None]))
    return torch.zeros_like(valid).scatter(1, at, start[:, : at.shape[1]] & filled)


def begins(start: Tensor, valid: Tensor) -> Tensor:
    """``(B, N)`` long: for each valid token the position at which its segment begins; -1 elsewhere."""
    place = torch.where(start, torch.arange(start.shape[1], device=start.device), -1)
    return torch.where(valid, place.cummax(1).values, -1)
