"""Merge: what becomes of the tokens that are not kept."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tokensieve.parts.budget import spared
from tokensieve.parts.select import compact, last_of_each, ranks, take, top, top_of_each

BLOCK = 4096


def nearest(metric: Tensor, among: Tensor, euclidean: bool = False) -> tuple[Tensor, Tensor]:
    """For every token the source index of the most similar token of ``among``, and that similarity.

    Args:
        metric: ``(B, N, D)``. among: ``(B, N)`` bool. euclidean: take the token at the smallest distance instead of the
        largest cosine; similarity is then minus half the
            squared distance, up to a term that depends on the token alone.

    Returns:
        index ``(B, N)`` long, -1 in rows without candidates, and similarity ``(B, N)``. Works in blocks over N: memory
        B x block x M.
    """
    slots, held = compact(among)
    anchors = take(metric, slots)
    # A token's own length does not change which anchor is nearest, so the tokens need no normalised copy.
    scale = None if euclidean else 1 / torch.linalg.vector_norm(metric, dim=-1).clamp(min=1e-12)
    anchors = anchors if euclidean else normalize(anchors, dim=-1)
    bias = anchors.square().sum(-1) / -2 if euclidean else torch.zeros_like(anchors[..., 0])
    bias = bias.masked_fill(~held, -torch.inf)
    index, value = [], []
    for rows in metric.split(BLOCK, dim=1):
        v, i = (rows @ anchors.transpose(1, 2) + bias[:, None]).max(-1)
        value.append(v)
        index.append(slots.gather(1, i))
    found = torch.cat(index, 1).masked_fill(~among.any(1, keepdim=True), -1)
    return found, torch.cat(value, 1) if scale is None else torch.cat(value, 1) * scale


def recycled(importance: Tensor, keep: Tensor, group: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """The most important tokens as they are; what is left of each group becomes one token, where its best one stands.

    Both together are the budget. Where it is too small for all groups, the better half of it stays as it is and the groups
    of the best leftovers get the rest.

    Args:
        importance: ``(B, N)``; keep: ``(B,)``; group: ``(B, N)`` long, negative for padding.

    Returns:
        chosen, ``(B, N)`` bool, and the token that each joins, ``(B, N)`` long, -1 where it is dropped.
    """
    among = group >= 0
    plain = top(importance, spared(keep, ranks(importance, among), group, groups), among)
    rest = among & ~plain
    one = torch.ones(len(keep), groups, dtype=torch.long, device=keep.device)
    heads = top_of_each(importance, one, group, rest)
    heads = top(importance, keep - plain.sum(1), heads)
    target = last_of_each(group.masked_fill(~heads, -1), groups).gather(1, group.clamp(min=0))
    return plain | heads, target.masked_fill(~rest, -1)


def added_mean(chosen: Tensor, target: Tensor) -> Tensor:
    """Weights that add the mean of a slot's joining tokens onto its own token: 1 for chosen, 1/joiners for the rest."""
    joins = (target >= 0) & ~chosen
    joiners = joins.new_zeros(target.shape, dtype=torch.float32).scatter_add_(1, target.clamp(min=0), joins.float())
    return torch.where(chosen, 1.0, 1.0 / joiners.gather(1, target.clamp(min=0)).clamp(min=1))
