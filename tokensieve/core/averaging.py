"""Averaging: tokens of one slot become one, without a matrix of slots and tokens."""

from __future__ import annotations

import torch
from torch import Tensor


def averaged(x: Tensor, kept: Tensor, mask: Tensor, owner: Tensor, weight: Tensor) -> Tensor:
    """``(B, N, D)`` -> ``(B, M, D)``: the sum of each slot's tokens, each times its weight.

    Slots begin as their own token, and only what joins one is added: whole vectors move faster than single elements, and most
    slots are their own token alone.

    Args:
        kept: ``(B, M)`` long, the token whose place each slot takes; mask: ``(B, M)`` bool, False at padding, which gets zeros.
        owner: ``(B, N)`` long, the slot of each token, -1 for none; weight: ``(B, N)``.
    """
    batch, n, width = x.shape
    rows, weight = x.flatten(0, 1), weight.to(x.dtype).flatten()
    start = torch.arange(batch, device=x.device)[:, None]
    place = (kept + start * n).flatten()
    out, share = rows.index_select(0, place), weight.index_select(0, place) * mask.flatten()
    mixed = ((share != 1) | share.requires_grad).nonzero()[:, 0]
    out.index_copy_(0, mixed, out.index_select(0, mixed) * share.index_select(0, mixed)[:, None])
    joining = (owner >= 0).flatten().index_fill(0, place, False).nonzero()[:, 0]
    into = (owner + start * kept.shape[1]).flatten().index_select(0, joining)
    out.index_add_(0, into, rows.index_select(0, joining) * weight.index_select(0, joining)[:, None])
    return out.view(batch, kept.shape[1], width)
