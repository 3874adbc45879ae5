"""Slots: where the tokens that stay are in a shorter sequence, and which slot got most of each token."""

from __future__ import annotations

import torch
from torch import Tensor


def slots(chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """kept (B, M), mask (B, M) and, for every source token, the slot it would own (B, N)."""
    slot = chosen.long().cumsum(1) - 1
    counts = slot[:, -1] + 1
    least, most = int(counts.min()), int(counts.max())
    if least == 0:
        raise ValueError("a row keeps no token; every row must keep at least one")
    b = chosen.shape[0]
    if least == most:
        kept = chosen.nonzero()[:, 1].view(b, most)
        return kept, torch.ones_like(kept, dtype=torch.bool), slot
    mask = torch.arange(most, device=chosen.device) < counts[:, None]
    first_kept = (~chosen).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]
    last = first_kept.gather(1, counts[:, None] - 1)
    return torch.where(mask, first_kept, last), mask, slot


def as_dense(matrix: Tensor) -> Tensor:
    """A transform as a dense matrix."""
    return matrix.to_dense() if matrix.is_sparse else matrix


def strongest(matrix: Tensor) -> Tensor:
    """``(B, N)`` long: of a transform ``(B, M, N)``, the slot that got most of each token; -1 where none got any."""
    value, owner = as_dense(matrix).abs().max(1)
    return torch.where(value > 0, owner, -1)


def shares(matrix: Tensor) -> Tensor:
    """Of a transform ``(B, M, N)``, how much of each token went to each slot, as parts of 1."""
    weight = as_dense(matrix).abs()
    return weight / weight.sum(1, keepdim=True).clamp(min=1e-12)
