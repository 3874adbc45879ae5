"""Anchors: the greatest scores that a query finds where attention is expected, against which all other keys are held."""

from __future__ import annotations

import torch
from torch import Tensor


def stripes(query: Tensor, key: Tensor, scale: float, valid: Tensor, block: int, gap: float) -> Tensor:
    """By how much earlier keys are above what lies ``gap`` below the anchors of a group of queries (AnchorAttention).

    The anchor of a query is its greatest score among the first ``block`` keys and those of its own group. Queries and anchors
    are averaged over blocks of the group, so that the scores of all other keys cost a ``block``-th of the full ones. A key
    counts with the block to which it matters most.

    Args:
        query: ``(B, H, g, d)``; key: ``(B, H, n, d)``, the group's own keys last.
        valid: ``(B, n)`` bool, False at padding.
        block: queries that are averaged; gap: in units of the scores, which are natural logarithms of attention.

    Returns:
        ``(B, H, n - g)``, infinite for the first keys, negative for those that are no stripes; memory B x H x max(g / block
        x n, g x (g + block)).
    """
    length, front = query.shape[2], key.shape[2] - query.shape[2]
    first = valid & (valid.long().cumsum(1) <= block)
    own = torch.arange(length, device=query.device)
    causal = (own <= own[:, None]) & valid[:, None, None, front:]
    anchor = score(query, key[:, :, front:], scale, causal).amax(3)
    if not front:
        return anchor[:, :, :0]
    width = int(first.sum(1).amax())
    place = first.long().argsort(dim=1, descending=True, stable=True)[:, :width]
    head = key.gather(2, place[:, None, :, None].expand(-1, key.shape[1], -1, key.shape[3]))
    seen = first.gather(1, place)[:, None, None] & (place[:, None, None] < front)
    anchor = anchor.maximum(score(query, head, scale, seen).amax(3))
    # Padding has a part in no mean.
    weight = valid[:, front:].to(query.dtype)
    anchor = torch.where(weight[:, None] > 0, anchor, 0.0)
    size = blocks(weight[:, None], block).clamp(min=1)
    centre, level = blocks(query * weight[:, None, :, None], block) / size[..., None], blocks(anchor, block) / size
    margin = score(centre, key[:, :, :front], scale) + gap - level[..., None]
    some = blocks(weight[:, None], block) > 0
    margin = margin.masked_fill(~some[..., None], -torch.inf).amax(2)
    return margin.masked_fill(first[:, None, :front], torch.inf).masked_fill(~valid[:, None, :front], -torch.inf)


def score(query: Tensor, key: Tensor, scale: float, allowed: Tensor | None = None) -> Tensor:
    """``(B, H, g, n)`` scores in float32, negative infinity where they are not ``allowed``."""
    out = query.float() @ key.float().transpose(2, 3) * scale
    return out if allowed is None else out.masked_fill(~allowed, -torch.inf)


def blocks(x: Tensor, size: int) -> Tensor:
    """``(B, H, g, ...)`` summed over blocks of ``size`` along the third dimension; the last may be shorter."""
    short = -x.shape[2] % size
    if short:
        x = torch.cat([x, x.new_zeros(*x.shape[:2], short, *x.shape[3:])], 2)
    return x.unflatten(2, (-1, size)).sum(3)
