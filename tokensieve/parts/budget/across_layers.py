"""Layers: one budget for all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokensieve.parts import select


def across(worth: Sequence[Tensor], total: Tensor, least: Tensor, most: Tensor) -> Tensor:
    """One budget for all layers: the slots that are worth most, whichever layer they belong to; ties to the earlier layer.

    Args:
        worth: of each layer, ``(B, M)``, what each further slot is worth, falling along the row; layers may differ in M.
        total: ``(B,)``; least: ``(B,)``, the slots that each layer is sure of; most: ``(B, L)``, what each holds.

    Returns:
        ``(B, L)`` long, summing to ``total`` where there are as many slots and it is not below what is sure.
    """
    layers, width = len(worth), max(w.shape[1] for w in worth)
    table = torch.full((len(total), layers, width), -torch.inf, dtype=torch.float64, device=total.device)
    for i, w in enumerate(worth):
        table[:, i, : w.shape[1]] = w
    place = torch.arange(width, device=total.device)
    sure = (place < least[:, None, None]) & (place < most[..., None])
    open_ = (place < most[..., None]) & ~sure
    spare = (total - sure.sum((1, 2))).clamp(min=0)
    more = select.top(table.flatten(1), spare, open_.flatten(1)).unflatten(1, (layers, -1))
    return (sure | more).sum(2)
