"""Groups: tokens that belong together (crops, rows of the grid, frames), by an index ``(B, N)`` long, negative for none."""

from __future__ import annotations

import torch
from torch import Tensor


def sums(value: Tensor, group: Tensor, among: Tensor, groups: int) -> Tensor:
    """``(B, G)`` float64: the sum of ``value`` over the candidates of each group."""
    inside = among & (group >= 0)
    out = torch.zeros(len(group), groups, dtype=torch.float64, device=value.device)
    return out.scatter_add_(1, group.clamp(min=0), torch.where(inside, value, 0.0).double())


def scaled(value: Tensor, group: Tensor, among: Tensor, groups: int) -> Tensor:
    """``(B, N)``: values divided by their group's Euclidean norm, zero outside the groups."""
    norm = sums(value.square(), group, among, groups).sqrt().clamp(min=1e-12).to(value.dtype)
    inside = among & (group >= 0)
    return torch.where(inside, value / norm.gather(1, group.clamp(min=0)), 0.0)


def filled(total: Tensor, score: Tensor, most: Tensor) -> Tensor:
    """Groups filled one after the other, best first, the last one in part: ``(B, G)`` counts.

    Args:
        total: ``(B,)`` long; score: ``(B, G)``; most: ``(B, G)`` long, what each group holds.
    """
    order = score.argsort(dim=1, descending=True, stable=True)
    held = most.gather(1, order)
    before = held.cumsum(1) - held
    taken = (total[:, None] - before).clamp(min=0).minimum(held)
    return torch.zeros_like(most).scatter_(1, order, taken)
