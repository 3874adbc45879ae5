"""Attention over keys and values in few bits: codes are weighed as they are, and steps and least values behind the sums."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokensieve.parts.numeric.bits import Packed


def attend(
    query: Tensor,
    parts: Sequence[tuple[Packed, Packed]],
    real: Tensor | None,
    keys: Tensor,
    values: Tensor,
    scale: float,
    allowed: Tensor | None,
) -> Tensor:
    """Attention of each query over packed entries, part by part, and over others behind them, in one softmax, in float32.

    Args:
        query: ``(B, H, T, d)``; parts: keys by channel and values by vector, ``(B, N_i, G d)``, d a multiple of a byte's codes.
        real: ``(B, N_1 + ...)`` bool, False at padding of the parts; None for none.
        keys, values: ``(B, G, n, d)``, the others; allowed: additive, broadcastable to ``(B, H, T, n)``; None for all.

    Returns:
        ``(B, H, T, d)``.
    """
    heads, length = keys.shape[1], query.shape[2]
    rows = query.float().unflatten(1, (heads, -1)).flatten(2, 3) * scale  # (B, G, H / G * T, d)
    scores = [_scores(rows, packed) for packed, _ in parts]
    sizes = [part.shape[3] for part in scores]
    if real is not None:
        shown = real[:, None, None].split(sizes, -1)
        scores = [part.masked_fill_(~some, -torch.inf) for part, some in zip(scores, shown, strict=True)]
    late = rows @ keys.float().transpose(2, 3)
    if allowed is not None:
        each = allowed.expand(-1, query.shape[1], length, -1).unflatten(1, (heads, -1)).flatten(2, 3)
        late = late + each.float()
    *shares, last = torch.cat([*scores, late], 3).softmax(-1).split([*sizes, late.shape[3]], -1)
    out = last @ values.float()
    for share, (_, packed) in zip(shares, parts, strict=True):
        out += _mixed(share, packed)
    return out.unflatten(2, (-1, length)).flatten(1, 2).to(query.dtype)


def _scores(rows: Tensor, packed: Packed) -> Tensor:
    """``(B, G, R, N)``: products of ``rows`` ``(B, G, R, d)`` with vectors that are packed by channel."""
    heads = rows.shape[1]
    step, low = (x.float().unflatten(2, (heads, -1)).transpose(1, 2) for x in (packed.scale, packed.low))
    out, weighed = (rows * low).sum(-1, keepdim=True), rows * step
    planes = packed.planes()
    for i, plane in enumerate(planes):
        out = out + weighed[..., i :: len(planes)] @ plane.unflatten(2, (heads, -1)).permute(0, 2, 3, 1)
    return out


def _mixed(share: Tensor, packed: Packed) -> Tensor:
    """``(B, G, R, d)``: sums, by ``share`` ``(B, G, R, N)``, of vectors that are packed by vector."""
    heads = share.shape[1]
    step, low = (x.float()[:, None, None, :, 0] for x in (packed.scale, packed.low))
    weighed = share * step
    sums = [weighed @ plane.unflatten(2, (heads, -1)).transpose(1, 2) for plane in packed.planes()]
    out = torch.stack(sums, -1).flatten(-2) + (share * low).sum(-1, keepdim=True)
    return out if packed.channel is None else out * packed.channel.float().unflatten(2, (heads, -1)).transpose(1, 2)
