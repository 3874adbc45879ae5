"""Merge: what becomes of the tokens that are not kept."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tokensieve.parts.select import compact, take

BLOCK = 4096


def nearest(
    metric: Tensor, among: Tensor, euclidean: bool = False, group: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """For every token the source index of the most similar token of ``among``, and that similarity.

    Args:
        metric: ``(B, N, D)``. among: ``(B, N)`` bool. euclidean: take the token at the smallest distance instead of the
        largest cosine; similarity is then minus half the
            squared distance, up to a term that depends on the token alone.
        group: ``(B, N)`` long; only tokens of the same group are looked at.

    Returns:
        index ``(B, N)`` long, -1 where there is no candidate, and similarity ``(B, N)``. Works in blocks over N: memory
        B x block x M.
    """
    unit = metric if euclidean else normalize(metric, dim=-1)
    slots, held = compact(among)
    anchors = take(unit, slots)
    bias = anchors.square().sum(-1) / -2 if euclidean else torch.zeros_like(anchors[..., 0])
    bias = bias.masked_fill(~held, -torch.inf)
    index, value = [], []
    for start in range(0, unit.shape[1], BLOCK):
        part = slice(start, start + BLOCK)
        like = unit[:, part] @ anchors.transpose(1, 2) + bias[:, None]
        if group is not None:
            like = like.masked_fill(group[:, part, None] != group.gather(1, slots)[:, None], -torch.inf)
        v, i = like.max(-1)
        value.append(v)
        index.append(slots.gather(1, i))
    best = torch.cat(value, 1)
    return torch.cat(index, 1).masked_fill(best == -torch.inf, -1), best


def anchored(chosen: Tensor, target: Tensor, least: float) -> Tensor:
    """Weights that mix a slot's own token with the mean of the n tokens that join it: 1/(n + 1), but at least ``least``,
    for its own."""
    joins = (target >= 0) & ~chosen
    joiners = joins.new_zeros(target.shape, dtype=torch.float32).scatter_add_(1, target.clamp(min=0), joins.float())
    own = (1 / (joiners + 1)).clamp(min=least).where(joiners > 0, 1.0)
    return torch.where(chosen, own, ((1 - own) / joiners.clamp(min=1)).gather(1, target.clamp(min=0)))


def added_mean(chosen: Tensor, target: Tensor) -> Tensor:
    """Weights that add the mean of a slot's joining tokens onto its own token: 1 for chosen, 1/joiners for the rest."""
    joins = (target >= 0) & ~chosen
    joiners = joins.new_zeros(target.shape, dtype=torch.float32).scatter_add_(1, target.clamp(min=0), joins.float())
    return torch.where(chosen, 1.0, 1.0 / joiners.gather(1, target.clamp(min=0)).clamp(min=1))
