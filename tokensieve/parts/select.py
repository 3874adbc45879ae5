"""Select: which tokens stay. A selection is a ``(B, N)`` bool tensor, so `&`, `|` and `~` combine selections.

All functions take ``among`` (``(B, N)`` bool, the candidates) and ``count`` (``(B,)`` long, how many of them; at most the
candidates are taken). Ties go to the earlier position.
"""

from __future__ import annotations

import torch
from torch import Tensor


def top(score: Tensor, count: Tensor, among: Tensor) -> Tensor:
    """The ``count[b]`` candidates of highest score in each row."""
    if int(count.max()) == 0:
        return torch.zeros_like(among)
    order = score.masked_fill(~among, -torch.inf).argsort(dim=1, descending=True, stable=True)
    rank_ok = torch.arange(score.shape[1], device=score.device) < count[:, None]
    return torch.zeros_like(among).scatter_(1, order, rank_ok) & among


def evenly(count: Tensor, among: Tensor) -> Tensor:
    """``count[b]`` candidates at equal steps along the row, starting with the first."""
    held = among.sum(1, keepdim=True)
    rank = among.long().cumsum(1) - 1
    step = count[:, None].clamp(max=held)
    # Rank r is chosen when r * count // held moves on: exactly `count` of `held` ranks do.
    moved = (rank * step) // held.clamp(min=1) != ((rank - 1) * step).div(held.clamp(min=1), rounding_mode="floor")
    return among & moved & (step > 0)
