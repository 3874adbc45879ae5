"""Merge: what becomes of the tokens that are not kept."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from tokensieve.parts.budget import spared
from tokensieve.parts.numeric import twins
from tokensieve.parts.select import compact, last_of_each, ranks, take, top, top_of_each

HELD, HELD_DEVICE = 1 << 20, 1 << 26
"""Similarities held at once: 4 MB, which stay near a processor, or 256 MB on other devices."""
GROUPED, SIDE = 512, 32


def nearest(
    metric: Tensor, candidates: Tensor, euclidean: bool = False, asked: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """For every token the source index of the most similar token of ``candidates``, and that similarity.

    Args:
        metric: ``(B, N, D)``.
        among: ``(B, N)`` bool.
        euclidean: take the token at the smallest distance instead of the largest cosine; similarity is then minus half the
            squared distance, up to a term that depends on the token alone.
        asked: ``(B, N)`` bool, the tokens that it is asked for; all if not given. What stands at others says nothing.

    Returns:
        index ``(B, N)`` long, -1 in rows without candidates, and similarity ``(B, N)``. Works in blocks over N: memory
        B x block x M, ``HELD`` numbers.
    """
    first = twins.firsts(metric)
    leads = candidates if first is None else candidates & _leads(metric, candidates)
    slots, anchors, bias = _anchors(metric, leads, euclidean)
    if anchors.shape[1] >= SIDE**2:
        short = -anchors.shape[1] % SIDE
        slots, bias = pad(slots, (0, short)), pad(bias, (0, short), value=-torch.inf)
        anchors = pad(anchors, (0, 0, 0, short))
    if asked is not None and first is None:
        place, _ = compact(asked)
        metric = take(metric, place)
    index, value = [], []
    most = HELD if metric.device.type == "cpu" else HELD_DEVICE
    for rows in metric.split(max(most // max(slots.numel(), 1), 16), dim=1):
        v, i = _highest(torch.baddbmm(bias[:, None], rows, anchors.transpose(1, 2)))
        value.append(v)
        index.append(slots.gather(1, i))
    found = twins.level(torch.cat(index, 1), first).masked_fill(~candidates.any(1, keepdim=True), -1)
    like = twins.level(torch.cat(value, 1), first)
    like = like if euclidean else like / torch.linalg.vector_norm(metric, dim=-1).clamp(min=1e-12)
    if asked is None or first is not None:
        return found, like
    at = torch.full_like(candidates, -1, dtype=torch.long).scatter_(1, place, found)
    return at, like.new_full(candidates.shape, -torch.inf).scatter_(1, place, like)


def _highest(x: Tensor) -> tuple[Tensor, Tensor]:
    """As ``x.max(-1)``, the first where several are highest: at first of stretches of ``SIDE``, whose highest is found many
    times as fast without its place."""
    if x.shape[-1] % SIDE or x.shape[-1] < SIDE**2:
        return x.max(-1)
    parts = x.unflatten(-1, (-1, SIDE))
    part = parts.amax(-1).max(-1).indices[..., None]
    value, place = parts.gather(-2, part[..., None].expand(*part.shape, SIDE))[..., 0, :].max(-1)
    return value, part[..., 0] * SIDE + place


def recycled(importance: Tensor, keep: Tensor, group: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """The most important tokens as they are; what is left of each group becomes one token, where its best one stands.

    Both together are the budget. Where it is too small for all groups, the better half of it stays as it is and the groups
    of the best leftovers get the rest.

    Args:
        importance: ``(B, N)``; keep: ``(B,)``; group: ``(B, N)`` long, negative for padding.

    Returns:
        chosen, ``(B, N)`` bool, and the token that each joins, ``(B, N)`` long, -1 where it is dropped.
    """
    candidates = group >= 0
    plain = top(importance, spared(keep, ranks(importance, candidates), group, groups), candidates)
    rest = candidates & ~plain
    one = torch.ones(len(keep), groups, dtype=torch.long, device=keep.device)
    heads = top_of_each(importance, one, group, rest)
    heads = top(importance, keep - plain.sum(1), heads)
    target = last_of_each(group.masked_fill(~heads, -1), groups).gather(1, group.clamp(min=0))
    return plain | heads, target.masked_fill(~rest, -1)


def nearest_within(metric: Tensor, candidates: Tensor, group: Tensor, euclidean: bool = False) -> Tensor:
    """As :func:`nearest`, looking only at tokens of the same group: index ``(B, N)`` long, -1 where there is none.

    Args:
        group: ``(B, N)`` long, not negative; fast where groups lie one after the other.
    """
    of_group = torch.cat([metric, group[..., None].to(metric.dtype)], 2)
    slots, anchors, bias = _anchors(metric, candidates & _leads(of_group, candidates), euclidean)
    own = group.gather(1, slots).masked_fill(bias == -torch.inf, -1)
    index = []
    for rows, theirs in zip(metric.split(GROUPED, 1), group.split(GROUPED, 1), strict=True):
        meets = ((own >= theirs.amin(1, True)) & (own <= theirs.amax(1, True))).any(0).nonzero()[:, 0]
        if not len(meets):
            index.append(torch.full_like(theirs, -1))
            continue
        like = rows @ anchors[:, meets].transpose(1, 2) + bias[:, None, meets]
        value, i = like.masked_fill(own[:, None, meets] != theirs[..., None], -torch.inf).max(-1)
        index.append(slots[:, meets].gather(1, i).masked_fill(value == -torch.inf, -1))
    return torch.cat(index, 1)


def _leads(metric: Tensor, candidates: Tensor) -> Tensor:
    """``(B, N)`` bool: False at candidates that have a twin in front of them."""
    first = twins.firsts(metric, candidates)
    return candidates if first is None else first == torch.arange(first.shape[1], device=first.device)


def _anchors(metric: Tensor, candidates: Tensor, euclidean: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The candidates' positions, what tokens are multiplied with to compare them with the candidates, and what is added.

    A token's own length does not change which candidate is nearest, so the tokens need no normalised copy.
    """
    slots, held = compact(candidates)
    anchors = take(metric, slots)
    anchors = anchors if euclidean else normalize(anchors, dim=-1)
    bias = anchors.square().sum(-1) / -2 if euclidean else torch.zeros_like(anchors[..., 0])
    return slots, anchors, bias.masked_fill(~held, -torch.inf)


def anchored(chosen: Tensor, target: Tensor, least: float) -> Tensor:
    """Weights that mix a slot's own token with the mean of the n tokens that join it: 1/(n + 1), but at least ``least``,
    for its own."""
    joiners = _joiners(chosen, target)
    own = (1 / (joiners + 1)).clamp(min=least).where(joiners > 0, 1.0)
    rest = (1 - own) / joiners.clamp(min=1)
    return torch.where(chosen, own, rest.gather(1, target.clamp(min=0)))


@torch.no_grad()
def levelled(x: Tensor, chosen: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Weights that give each slot the direction of its tokens' mean and their mean length: unit vectors stay unit vectors.

    Tokens whose mean is next to nothing (they point everywhere) are left with it.

    Args:
        x: ``(B, N, D)``; chosen: ``(B, N)`` bool; target: ``(B, N)`` long, -1 for none; weight: ``(B, N)``, not negative.
    """
    own = torch.arange(x.shape[1], device=x.device).expand_as(target)
    slot = torch.where(chosen, own, target)
    inside, slot = slot >= 0, slot.clamp(min=0)
    weight = torch.where(inside, weight, 0.0).to(x.dtype)
    weight = weight / torch.zeros_like(weight).scatter_add_(1, slot, weight).gather(1, slot).clamp(min=1e-12)
    mean = torch.zeros_like(x).scatter_add_(1, slot[..., None].expand_as(x), x * weight[..., None])
    norm = torch.linalg.vector_norm(x, dim=2)
    length = torch.zeros_like(norm).scatter_add_(1, slot, norm * weight)
    short = torch.linalg.vector_norm(mean, dim=2)
    scale = torch.where(short > 1e-6 * length, length / short.clamp(min=1e-30), 1.0)
    return weight * scale.gather(1, slot)


def added_mean(chosen: Tensor, target: Tensor) -> Tensor:
    """Weights that add the mean of a slot's joining tokens onto its own token: 1 for chosen, 1/joiners for the rest."""
    joiners = _joiners(chosen, target)
    return torch.where(chosen, 1.0, 1.0 / joiners.gather(1, target.clamp(min=0)).clamp(min=1))


def _joiners(chosen: Tensor, target: Tensor) -> Tensor:
    """``(B, N)``: how many other tokens join each token."""
    joins = (target >= 0) & ~chosen
    return joins.new_zeros(target.shape, dtype=torch.float32).scatter_add_(1, target.clamp(min=0), joins.float())
