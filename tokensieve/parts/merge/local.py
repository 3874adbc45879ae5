"""Local: k-means of tokens on a grid, which stay near the cell that they come from, and how they come back from it."""

from __future__ import annotations

import torch
from torch import Tensor

from tokensieve.parts.numeric import twins
from tokensieve.parts.select import cells, compact, take

AROUND = 9
"""Cells whose clusters a token may join: its own and the nearest, three by three on a grid."""
BLOCK = 1024


@torch.no_grad()
def means(
    x: Tensor, count: Tensor, candidates: Tensor, grid: tuple[int, int] | None, steps: int, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """K-means by Euclidean distance into exactly ``count[b]`` clusters, from the means of near-equal cells of the grid (of the
    row, where there is none), each of which keeps the token in its middle.

    Time N d ``AROUND`` steps; memory of N d.

    Args:
        x: ``(B, N, d)``; weight: ``(B, N)``, what each counts in its centre; steps: rounds at most.

    Returns:
        the tokens at which clusters stand, ``(B, N)`` bool, and for each candidate the one of its cluster, ``(B, N)`` long, -1
        elsewhere.
    """
    chosen, target = cells(count, candidates, grid)
    place, valid = compact(chosen)
    slot = chosen.long().cumsum(1) - 1
    home = torch.where(candidates, slot.gather(1, target.clamp(min=0)), 0)
    weight = weight * candidates
    near = _around(_middles(place, candidates, grid), valid)
    near = near.gather(1, home[..., None].expand(-1, -1, near.shape[2]))
    label = home
    for _ in range(steps):
        centre, before = _centres(x, label, weight, place), label
        least, label = (x - take(centre, home)).square().sum(2), home
        for other in near[..., 1:].unbind(2):
            far = (x - take(centre, other)).square().sum(2)
            closer = (far < least) & valid.gather(1, other) & ~chosen
            least, label = torch.where(closer, far, least), torch.where(closer, other, label)
        if torch.equal(label, before):
            break
    return chosen, place.gather(1, label).masked_fill(~candidates, -1)


def _middles(place: Tensor, candidates: Tensor, grid: tuple[int, int] | None) -> Tensor:
    """``(B, M, 2)``: where tokens stand on the grid; in the row, where the candidates do not fill it."""
    rank = (candidates.long().cumsum(1) - 1).gather(1, place)
    high, wide = grid or (1, candidates.shape[1])
    whole = candidates.sum(1, keepdim=True) == high * wide
    return torch.stack([torch.where(whole, rank // wide, 0), torch.where(whole, rank % wide, rank)], 2)


def _around(middle: Tensor, valid: Tensor) -> Tensor:
    """``(B, M, AROUND)`` long: of each cell itself, and those whose middles are nearest."""
    k, out, number = min(AROUND, middle.shape[1]), [], middle.shape[1]
    for start in range(0, number, BLOCK):
        rows = middle[:, start : start + BLOCK]
        far = (rows[:, :, None] - middle[:, None]).square().sum(3)
        far = far.masked_fill_(~valid[:, None], far.max() + 1) * number + torch.arange(number, device=far.device)
        own = torch.arange(rows.shape[1], device=far.device)
        far[:, own, own + start] = -1  # ties go to the earlier cell
        out.append(far.topk(k, dim=2, largest=False, sorted=True).indices)
    return torch.cat(out, 1)


def _centres(x: Tensor, label: Tensor, weight: Tensor, place: Tensor) -> Tensor:
    size = x.new_zeros(place.shape).scatter_add_(1, label, weight.to(x.dtype))
    start = torch.arange(len(x), device=x.device)[:, None] * place.shape[1]
    total = x.new_zeros(place.numel(), x.shape[2])
    total.index_add_(0, (label + start).flatten(), (x * weight[..., None]).flatten(0, 1))
    return total.view(*place.shape, x.shape[2]) / size.clamp(min=1e-12)[..., None]


@torch.no_grad()
def back(
    x: Tensor, slots: Tensor, valid: Tensor, candidates: Tensor, count: int, temperature: float
) -> tuple[Tensor, Tensor]:
    """For every token the ``count`` nearest slots, ``(B, N, k)`` long, and their shares: a softmax of minus the squared distance
    over ``temperature`` times the mean of that to the nearest one.

    Args:
        x: ``(B, N, d)``; slots: ``(B, M, d)``; valid: ``(B, M)`` bool; candidates: ``(B, N)`` bool.
    """
    k = min(count, slots.shape[1])
    first = twins.firsts(x)
    bias = (slots.square().sum(2) / -2).masked_fill(~valid, -torch.inf)[:, None]
    best = [torch.baddbmm(bias, rows, slots.transpose(1, 2)).topk(k, dim=2) for rows in x.split(BLOCK, 1)]
    near = twins.level(torch.cat([b.indices for b in best], 1), first)
    far = x.square().sum(2, keepdim=True) - 2 * twins.level(torch.cat([b.values for b in best], 1), first)
    far = far.clamp(min=0.0)
    usual = (far[..., 0] * candidates).sum(1) / candidates.sum(1)
    share = (-far / (temperature * usual.clamp(min=1e-12))[:, None, None]).softmax(2)
    return near, share
