"""Merge: what becomes of the tokens that are not kept."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

BLOCK = 4096


def nearest(metric: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """For every token the source index of the most cosine-similar token of ``among``, and that similarity.

    Args:
        metric: ``(B, N, D)``.
        among: ``(B, N)`` bool, at least one per row.

    Returns:
        index ``(B, N)`` long and similarity ``(B, N)``. Works in blocks over N: memory B x block x M.
    """
    from tokensieve.reduction import Reduction

    unit = normalize(metric, dim=-1)
    slots = Reduction.keep(among)
    anchors = slots.take(unit)
    index, value = [], []
    for rows in unit.split(BLOCK, dim=1):
        like = (rows @ anchors.transpose(1, 2)).masked_fill(~slots.mask[:, None], -torch.inf)
        v, i = like.max(-1)
        value.append(v)
        index.append(slots.kept.gather(1, i))
    return torch.cat(index, 1), torch.cat(value, 1)


def added_mean(chosen: Tensor, target: Tensor) -> Tensor:
    """Weights that add the plain mean of a slot's joining tokens onto its own token: 1 for chosen, 1/joiners for the rest."""
    joins = (target >= 0) & ~chosen
    joiners = joins.new_zeros(target.shape, dtype=torch.float32).scatter_add_(1, target.clamp(min=0), joins.float())
    return torch.where(chosen, 1.0, 1.0 / joiners.gather(1, target.clamp(min=0)).clamp(min=1))
