"""Rows of attention from queries and keys: exactly those asked for, never the whole map."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

BLOCK = 512
HELD = 1 << 24
"""Numbers held at once: 64 MB."""


def attend(query: Tensor, key: Tensor, scale: float, allowed: Tensor | None = None) -> Tensor:
    """Softmax attention rows, in float32.

    Args:
        query: ``(B, H, T, d)``; key: ``(B, G, N, d)`` with G dividing H (grouped queries).
        scale: what scores are multiplied by.
        allowed: bool, or additive, broadcastable to ``(B, 1, T, N)``.

    Returns:
        ``(B, H, T, N)``.
    """
    groups = query.shape[1] // key.shape[1]
    q = query.float().unflatten(1, (key.shape[1], groups))
    scores = (q @ key.float()[:, :, None].transpose(-1, -2)).flatten(1, 2) * scale
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf) if allowed.dtype == torch.bool else scores + allowed.float()
    return scores.softmax(-1).nan_to_num(0.0)


def received(query: Tensor, key: Tensor, scale: float, allowed: Tensor | None = None, block: int = BLOCK) -> Tensor:
    """Mean attention that each key receives over all queries, ``(B, H, N)``; memory B x H x block x N."""
    total = query.new_zeros(query.shape[0], query.shape[1], key.shape[2], dtype=torch.float32)
    for start in range(0, query.shape[2], block):
        part = allowed if allowed is None or allowed.shape[-2] == 1 else allowed[..., start : start + block, :]
        total += attend(query[:, :, start : start + block], key, scale, part).sum(2)
    return total / query.shape[2]


def spread(rows: Callable[[int, int], Tensor], start: Tensor, steps: int, block: int = BLOCK) -> Tensor:
    """Where attention comes to rest: ``start`` sent along the attention rows ``steps`` times.

    Args:
        rows: the rows of queries ``first`` to ``last``, ``(B, H, last - first, N)``; asked for in blocks, once where all of
            them are few enough to be held (``HELD`` numbers), and once a step otherwise.
        start: ``(B, N)``, what each token holds at first.

    Returns:
        ``(B, H, N)``, what each holds in the end.
    """
    blocks = range(0, start.shape[1], block)
    known: dict[int, Tensor] = {}

    def at(i: int) -> Tensor:
        part = known[i] if i in known else rows(i, i + block)
        if part.numel() * len(blocks) <= HELD:
            known[i] = part
        return part

    held = start[:, None]
    for _ in range(steps):
        held = sum((held[..., None, i : i + block] @ at(i))[..., 0, :] for i in blocks)  # type: ignore[assignment]
    return held
