"""Crops: an image that comes as a thumbnail and several crops of it, and how they lie to each other."""

from __future__ import annotations

import torch
from torch import Tensor

from tokensieve.core.signal_table import signal
from tokensieve.core.signals import MissingSignal, Signals
from tokensieve.parts.select import compact, take

BLOCK = 1 << 20
"""The largest number of pairs of tokens that are compared at once."""


def of(s: Signals) -> tuple[Tensor, int]:
    """The groups of a picture: ``(B, N)`` long and their number G.

    Group 0 is the thumbnail (everything, where the picture comes in one), then come the crops, and the last one, G - 1,
    holds the tokens of none (line ends).
    """
    if s.crop is None:
        return torch.zeros_like(s.valid, dtype=torch.long), 2
    number = max(int(s.crop.max()), 0) + 2
    return torch.where(s.crop >= 0, s.crop.long(), number - 1), number


def spots(s: Signals) -> Tensor:
    """Where tokens lie in the whole picture, ``(B, N, 2)``.

    Raises:
        MissingSignal: crops are given, but not where their tokens lie.
    """
    if s.spots is None:
        raise MissingSignal(
            f"crop tells crops apart, not where they lie in the picture; pass {signal('spot').how} beside it"
        )
    return s.spots


def regions(spots: Tensor, group: Tensor, candidates: Tensor, number: int) -> Tensor:
    """``(B, N)`` long: for every thumbnail token the crop it lies in or nearest to, the first of several; -1 elsewhere.

    Args:
        spots: ``(B, N, 2)``; group, number: of :func:`of`.
    """
    part = torch.where(candidates & (group < number - 1), group, number - 1)[..., None].expand(-1, -1, 2)
    start = spots.new_full((len(spots), number, 2), torch.inf)
    low = start.scatter_reduce(1, part, spots, "amin")[:, 1:-1]
    high = (-start).scatter_reduce(1, part, spots, "amax")[:, 1:-1]
    if low.shape[1] == 0:
        return torch.full_like(group, -1)
    apart = torch.zeros(*group.shape, low.shape[1], dtype=spots.dtype, device=spots.device)
    for axis in range(2):
        at = spots[..., axis, None]
        apart += (low[:, None, :, axis] - at).clamp(min=0).square() + (at - high[:, None, :, axis]).clamp(
            min=0
        ).square()
    distance, nearest = apart.min(2)
    return torch.where(candidates & (group == 0) & distance.isfinite(), nearest + 1, -1)


@torch.no_grad()
def seen(value: Tensor, spots: Tensor, candidates: Tensor) -> Tensor:
    """``(B, N)``: what the candidates (a thumbnail's tokens, on a regular grid) have at every token's spot, bilinearly.

    Beyond the outermost candidates their value goes on; zero where no candidate is near.
    """
    place, valid = compact(candidates)
    known, value = take(spots, place), value.gather(1, place)
    pitch = _pitch(known, valid)
    out = []
    for rows in spots.split(max(BLOCK // known[..., 0].numel(), 1), 1):
        weight = valid[:, None].to(spots.dtype).expand(-1, rows.shape[1], -1)
        for axis in range(2):
            line = known[..., axis]
            low = line.masked_fill(~valid, torch.inf).amin(1, keepdim=True)
            high = line.masked_fill(~valid, -torch.inf).amax(1, keepdim=True)
            at = rows[..., axis].maximum(low).minimum(high)
            weight = weight * (1 - (at[..., None] - line[:, None]).abs() / pitch[:, axis, None, None]).clamp(min=0)
        out.append((weight * value[:, None]).sum(2) / weight.sum(2).clamp(min=1e-12))
    return torch.cat(out, 1)


def _pitch(spots: Tensor, valid: Tensor) -> Tensor:
    """``(B, 2)``: the distance of neighbouring lines of the grid; 1 where there is only one line."""
    spots = torch.where(valid[..., None], spots, spots[:, :1])
    step = spots.sort(dim=1).values.diff(dim=1, prepend=spots.amin(1, keepdim=True))
    step = step.masked_fill(step < 1e-5, torch.inf).amin(1)
    return torch.where(step.isinf(), 1.0, step)
