"""Positions of a thinned prompt: those that its tokens have in the prompt that holds all of them, or consecutive ones.

The text has its positions at once. A kept token's is known when the encoder has told which one it is; until then its slot holds
``-1 - base``, base being the position at which its run begins. The tokens' places in their run travel with their embeddings, as
six more channels: for each axis (t, h, w) the place divided by 128 and the rest, exact in bfloat16 up to 32,767, and -1
for tokens whose slot has its position already. A slot that was filled stays as it is when its prompt is computed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CHANNELS, STEP = 6, 128


@dataclass(frozen=True)
class ThinnedRun:
    """A run of slots in a thinned prompt.

    Attributes:
        start: the first slot; kept: their number; tokens: how many there would be.
    """

    start: int
    kept: int
    tokens: int


def places(tokens: int, grid: Sequence[int] | None) -> Tensor:
    """``(N, 3)``: where the tokens of a run lie, from its first on; on one axis all three are the same.

    Args:
        grid: frames, rows and columns of tokens, for M-RoPE; None where positions have one axis.
    """
    if grid is None:
        return torch.arange(tokens)[:, None].expand(-1, 3)
    t, h, w = (torch.arange(n) for n in grid)
    return torch.cartesian_prod(t, h, w)


def channels(at: Tensor | None, like: Tensor) -> Tensor:
    """The places ``(k, 3)`` of the tokens ``like``, ``(k, D)``, as channels ``(k, 6)``; None where slots say them already."""
    if at is None:
        return like.new_full((len(like), CHANNELS), -1)
    at = at.to(like.device)
    return torch.cat([at.div(STEP, rounding_mode="floor"), at % STEP], 1).to(like.dtype)


def split(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings with channels ``(k, D + 6)`` -> embeddings ``(k, D)`` and places ``(k, 3)``, below 0 where none are told."""
    told = rows[:, -CHANNELS:].float().round().long()
    return rows[:, :-CHANNELS], told[:, :3] * STEP + told[:, 3:]


def whole(runs: Sequence[ThinnedRun], length: int) -> Tensor:
    """``(L,)``: for each slot of a thinned prompt where it stands in the one that holds all tokens, kept tokens as if they were
    the first of their run."""
    more = torch.zeros(length, dtype=torch.long)
    for run in runs:
        if run.start + run.kept < length:
            more[run.start + run.kept] += run.tokens - run.kept
    return torch.arange(length) + more.cumsum(0)


def begun(full: Tensor, runs: Sequence[ThinnedRun], length: int) -> tuple[Tensor, int]:
    """Positions of a thinned prompt, and by how much what is written behind it is ahead of its length.

    Args:
        full: ``(3, F)``, those of the prompt that holds all tokens.
        length: of the thinned prompt.

    Returns:
        ``(3, length)``, ``-1 - base`` in the slots of runs that lost tokens, and the difference.
    """
    out = full[:, whole(runs, length)].clone()
    for run in runs:
        if run.kept < run.tokens:
            # A run's first token lies at its base on every axis.
            out[:, run.start : run.start + run.kept] = -1 - out[:, run.start : run.start + 1]
    return out, int(full.max()) + 1 - length


def filled(positions: Tensor, at: Tensor, slots: Tensor) -> Tensor:
    """Positions ``(3, L)`` with those of kept tokens.

    Args:
        at: ``(k, 3)`` the places of tokens in their runs, below 0 where the slot has its position.
        slots: ``(k,)`` their slots.
    """
    out, here = positions.clone(), positions[:, slots]
    at = at.T.to(positions.device)
    out[:, slots] = torch.where((here < 0) & (at >= 0), -1 - here + at, here)
    return out
