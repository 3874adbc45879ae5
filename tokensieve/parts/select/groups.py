"""Groups: tokens that belong together (crops, rows of the grid, frames), by an index ``(B, N)`` long, negative for none."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tokensieve.parts.select import compact, take

ROWS = 512


def sums(value: Tensor, group: Tensor, candidates: Tensor, groups: int) -> Tensor:
    """``(B, G)`` float64: the sum of ``value`` over the candidates of each group."""
    inside = candidates & (group >= 0)
    out = torch.zeros(len(group), groups, dtype=torch.float64, device=value.device)
    return out.scatter_add_(1, group.clamp(min=0), torch.where(inside, value, 0.0).double())


def scaled(value: Tensor, group: Tensor, candidates: Tensor, groups: int) -> Tensor:
    """``(B, N)``: values divided by their group's Euclidean norm, zero outside the groups."""
    norm = sums(value.square(), group, candidates, groups).sqrt().clamp(min=1e-12).to(value.dtype)
    inside = candidates & (group >= 0)
    return torch.where(inside, value / norm.gather(1, group.clamp(min=0)), 0.0)


def filled(total: Tensor, score: Tensor, most: Tensor) -> Tensor:
    """Groups filled one after the other, best first, the last one in part: ``(B, G)`` counts.

    Args:
        total: ``(B,)`` long; score: ``(B, G)``; most: ``(B, G)`` long, what each group holds.
    """
    order = score.argsort(dim=1, descending=True, stable=True)
    group_size = most.gather(1, order)
    before = group_size.cumsum(1) - group_size
    taken = (total[:, None] - before).clamp(min=0).minimum(group_size)
    return torch.zeros_like(most).scatter_(1, order, taken)


@torch.no_grad()
def count_similar(metric: Tensor, above: float, group: Tensor, candidates: Tensor, groups: int) -> Tensor:
    """``(B, N)`` long: how many candidates of its group, itself included, have a cosine above ``above`` with each token.

    Over M tokens of a group, time M^2 D and memory B x block x M.
    """
    out = torch.zeros_like(group)
    for place, rows, valid, like in _pairs(metric, group, candidates, groups):
        out.scatter_add_(1, place, ((like > above) & valid[:, None]).sum(2) * valid[:, rows])
    return out


def cohesion(x: Tensor, group: Tensor, groups: int) -> Tensor:
    """``(B, G)``: the mean cosine between two different members of each group; -1 in groups of fewer than two.

    Args:
        x: ``(B, N, D)``; group: ``(B, N)`` long, negative for none.
    """
    inside = group >= 0
    size = inside.new_zeros(len(x), groups, dtype=x.dtype).scatter_add_(1, group.clamp(min=0), inside.to(x.dtype))
    unit = normalize(x, dim=-1) * inside[..., None]
    summed = x.new_zeros(len(x), groups, x.shape[2])
    summed.scatter_add_(1, group.clamp(min=0)[..., None].expand_as(unit), unit)
    own = x.new_zeros(len(x), groups).scatter_add_(1, group.clamp(min=0), unit.square().sum(2))
    pairs = (summed.square().sum(2) - own) / (size * (size - 1)).clamp(min=1)
    return torch.where(size > 1, pairs, -1.0)


@torch.no_grad()
def variety(x: Tensor, group: Tensor, groups: int, candidates: Tensor) -> Tensor:
    """``(B, N)``: the variance of a token's cosines to the other candidates of its group, 0 where it has none.

    Over M tokens of a group, time M^2 D and memory B x block x M.
    """
    out = torch.zeros_like(x[..., 0])
    for place, rows, valid, like in _pairs(x, group, candidates, groups):
        other = valid[:, None].repeat(1, like.shape[1], 1)
        other.diagonal(rows.start, 1, 2).fill_(False)
        count = other.sum(2, keepdim=True).clamp(min=1)
        mean = (like * other).sum(2, keepdim=True) / count
        spread = like.sub_(mean).square_().mul_(other).sum(2) / count[..., 0]
        out.scatter_add_(1, place, spread * valid[:, rows])
    return out


def _pairs(x: Tensor, group: Tensor, candidates: Tensor, groups: int) -> Iterator[tuple[Tensor, slice, Tensor, Tensor]]:
    """Cosines within groups, one group after the other, in blocks of its members.

    Yields:
        positions of the block's members ``(B, P)``, where the block lies in the group, which of the group's M members are
        valid ``(B, M)``, and the block's cosines to them, ``(B, P, M)``.
    """
    unit, size = normalize(x, dim=-1), max(ROWS // len(x), 64)
    for g in range(groups):
        place, valid = compact(candidates & (group == g))
        own = take(unit, place)
        for start in range(0, place.shape[1], size):
            rows = slice(start, start + size)
            yield place[:, rows], rows, valid, own[:, rows] @ own.transpose(1, 2)
