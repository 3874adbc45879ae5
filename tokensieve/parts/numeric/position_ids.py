"""Place: which position ids the survivors of a reduction carry.

"original" keeps every id as it was (Grounding-Aware Token Pruning, arXiv 2506.21873: survivors keep their order and
index); "compact" renumbers, so that the survivors are consecutive and the text behind them closes up.
"""

from __future__ import annotations

import torch
from torch import Tensor


def positions(ids: Tensor, index: Tensor, valid: Tensor, policy: str, sequence: Tensor | None = None) -> Tensor:
    """Position ids of the tokens that are left.

    Args:
        ids: ``(..., B, L)``: ``(B, L)``, or ``(3, B, L)`` for M-RoPE.
        index: ``(B, L')`` long, the surviving tokens of each row, ascending.
        valid: ``(B, L')`` bool, False at padding slots, which keep the id that stands where they point.
        policy: one of ``POLICIES``. Compact ids count up from the row's first; all axes of M-RoPE alike, as for text.
        sequence: ``(B, L')`` long, ascending from 0: which of several sequences in a row each belongs to; each counts anew.

    Returns:
        ``(..., B, L')``.
    """
    out = ids.gather(-1, index.expand(*ids.shape[:-1], -1))
    if policy == "original":
        return out
    start = valid.long().argmax(-1, keepdim=True)
    if sequence is not None:
        each = valid[:, None] & (
            sequence[:, None] == torch.arange(int(sequence.max()) + 1, device=valid.device)[:, None]
        )
        start = each.long().argmax(-1).gather(-1, sequence)
    first = out.gather(-1, start.expand(*ids.shape[:-1], -1))
    first = first.flatten(0, -3).amin(0) if ids.dim() > 2 else first
    rank = valid.long().cumsum(-1) - 1
    return torch.where(valid, first + rank - rank.gather(-1, start), out)


def shift(ids: Tensor, index: Tensor, valid: Tensor, policy: str) -> Tensor:
    """``(..., B)``: by how much ids of later tokens (decode steps) are lowered, so that they follow on the survivors.

    The last survivor must be the last token of its row, as the last of a prompt is.
    """
    lowered = positions(ids, index, valid, "original") - positions(ids, index, valid, policy)
    last = valid.shape[-1] - 1 - valid.flip(-1).long().argmax(-1, keepdim=True)
    return lowered.gather(-1, last.expand(*ids.shape[:-1], 1))[..., 0]
