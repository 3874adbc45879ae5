"""Select: which tokens stay. A selection is a ``(B, N)`` bool tensor, so `&`, `|` and `~` combine selections.

All functions take ``candidates`` (``(B, N)`` bool, the candidates) and ``count`` (``(B,)`` long, how many of them; at most
the candidates are taken). Ties go to the earlier position, and no row has an influence on another.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tokensieve._moved import below
from tokensieve.core.topk import ranked, ranks, top

__all__ = ["ranked", "ranks", "top"]


def compact(candidates: Tensor) -> tuple[Tensor, Tensor]:
    """The candidates' positions at the front of each row, ``(B, M)``, and which of them are valid; M is at least 1."""
    n_valid = candidates.sum(1, keepdim=True)
    width = max(int(n_valid.max()), 1)
    place = (~candidates).to(torch.uint8).argsort(dim=1, stable=True)[:, :width]
    return place, torch.arange(width, device=candidates.device) < n_valid


def take(x: Tensor, place: Tensor) -> Tensor:
    """``(B, M, D)``: the tokens of x at positions ``(B, M)``."""
    if not x.is_contiguous():
        return x.gather(1, place[..., None].expand(-1, -1, x.shape[2]))
    # Whole vectors move several times as fast as single elements.
    row = torch.arange(len(x), device=x.device)[:, None] * x.shape[1]
    return x.flatten(0, 1).index_select(0, (place + row).flatten()).view(*place.shape, x.shape[2])


def union(score: Tensor, candidates: Tensor) -> Tensor:
    """``(B, N)`` long: each candidate's place in the order in which the union of every head's best takes them in, as heads
    name one more each; those named at once by their mean over heads. -1 elsewhere.

    Args:
        score: ``(B, H, N)``.
    """
    heads = score.shape[1]
    each = ranks(score.flatten(0, 1), candidates.repeat_interleave(heads, 0)).unflatten(0, (-1, heads))
    order = each.amin(1) * candidates.shape[1] + ranks(score.mean(1, dtype=torch.float64), candidates)
    return ranks(-order.double(), candidates)


def group_sizes(group: Tensor, candidates: Tensor, groups: int) -> Tensor:
    """``(B, G)``: how many candidates each of ``groups`` groups holds; group: ``(B, N)`` long, negative for none."""
    inside = (candidates & (group >= 0)).long()
    return inside.new_zeros(len(group), groups).scatter_add_(1, group.clamp(min=0), inside)


def top_of_each(score: Tensor, count: Tensor, group: Tensor, candidates: Tensor) -> Tensor:
    """The ``count[b, g]`` candidates of highest score in every group g (crop, frame, window, cluster) of every row.

    Args:
        score: ``(B, N)``; count: ``(B, G)`` long; group: ``(B, N)`` long, negative for none.
    """
    groups = count.shape[1]
    place = torch.where(candidates & (group >= 0), group, groups)
    order = score.argsort(dim=1, descending=True, stable=True)
    order = order.gather(1, place.gather(1, order).argsort(dim=1, stable=True))
    place = place.gather(1, order)
    size = group_sizes(place, torch.ones_like(candidates), groups + 1)
    rank = torch.arange(place.shape[1], device=place.device) - (size.cumsum(1) - size).gather(1, place)
    limit = torch.cat([count, torch.zeros_like(count[:, :1])], 1).gather(1, place)
    return torch.zeros_like(candidates).scatter_(1, order, rank < limit)


def drawn(weight: Tensor, noise: Tensor) -> Tensor:
    """``(B, N)`` scores whose top k are k draws without replacement with probabilities in proportion to ``weight``.

    Args:
        weight: not negative; noise: uniform in [0, 1).
    """
    tiny = torch.finfo(weight.dtype).tiny
    return weight.clamp(min=tiny).log() - (-noise.clamp(min=tiny).log()).clamp(min=tiny).log()


def first(count: Tensor, candidates: Tensor) -> Tensor:
    """The first ``count[b]`` candidates."""
    return candidates & (candidates.long().cumsum(1) <= count[:, None])


def last(count: Tensor, candidates: Tensor) -> Tensor:
    """The last ``count[b]`` candidates."""
    rank = candidates.long().cumsum(1)
    return candidates & (rank > rank[:, -1:] - count[:, None])


def evenly(count: Tensor, candidates: Tensor) -> Tensor:
    """``count[b]`` candidates at equal steps along the row, starting with the first."""
    n_valid = candidates.sum(1, keepdim=True)
    rank = candidates.long().cumsum(1) - 1
    step = count[:, None].minimum(n_valid)
    # Rank r is chosen when r * count // held moves on: exactly `count` of `held` ranks do.
    moved = (rank * step) // n_valid.clamp(min=1) != ((rank - 1) * step).div(
        n_valid.clamp(min=1), rounding_mode="floor"
    )
    return candidates & moved & (step > 0)


def strided(count: Tensor, candidates: Tensor) -> Tensor:
    """The first ``count[b]`` candidates at whole steps of ``candidates // count``, as VisionZip's code takes them."""
    rank = candidates.long().cumsum(1) - 1
    step = (candidates.sum(1, keepdim=True) // count[:, None].clamp(min=1)).clamp(min=1)
    return candidates & (rank % step == 0) & (rank // step < count[:, None])


def cells(count: Tensor, candidates: Tensor, grid: tuple[int | Tensor, int] | None) -> tuple[Tensor, Tensor]:
    """Exactly ``count[b]`` near-equal cells of the grid; of the row, where there is none or the candidates do not fill it.

    Where rows lie on grids of different height, that is a tensor ``(B, 1)``, and their candidates stand in front.

    About ``sqrt(count * height / width)`` bands of rows, each cut into almost equally many cells.

    Returns:
        centres ``(B, N)`` bool, and for every candidate the index of its cell's centre, ``(B, N)`` long, -1 elsewhere.
    """
    n_valid = candidates.sum(1, keepdim=True)
    place = torch.arange(candidates.shape[1], device=candidates.device).expand_as(candidates)
    rank = candidates.long().cumsum(1) - 1
    high, wide = (1, candidates.shape[1]) if grid is None else grid
    whole = n_valid == high * wide
    h, w = torch.where(whole, high, 1), torch.where(whole, wide, n_valid)
    y, x = torch.where(whole, place // wide, 0), torch.where(whole, place % wide, rank)

    k = count[:, None].minimum(n_valid)
    bands = (k * h / w).sqrt().round().long().maximum(-(-k // w)).minimum(h.minimum(k))
    band = ((y + 1) * bands - 1) // h
    first = band * k // bands
    across = (band + 1) * k // bands - first
    cell = ((x + 1) * across - 1) // w
    centre_y = (band * h // bands + (band + 1) * h // bands - 1) // 2
    centre_x = (cell * w // across + (cell + 1) * w // across - 1) // 2
    centre = (y == centre_y) & (x == centre_x) & candidates
    order, _ = compact(candidates)
    target = order.gather(1, (centre_y * w + centre_x).clamp(0, order.shape[1] - 1))
    return centre, torch.where(candidates, target, -1)


def windows(candidates: Tensor, grid: tuple[int, int] | None, side: int) -> tuple[Tensor, int]:
    """Windows of ``side`` x ``side`` cells of the grid; runs of as many candidates, where there is none.

    Returns:
        the window of each candidate, ``(B, N)`` long, -1 elsewhere, and the number of windows.
    """
    place = torch.arange(candidates.shape[1], device=candidates.device)
    if grid is None:
        window, number = (candidates.long().cumsum(1) - 1) // side**2, -(-candidates.shape[1] // side**2)
    else:
        across = -(-grid[1] // side)
        window = (place // grid[1] // side * across + place % grid[1] // side).expand_as(candidates)
        number = -(-grid[0] // side) * across
    return torch.where(candidates, window, -1), number


def last_of_each(group: Tensor, groups: int) -> Tensor:
    """``(B, G)``: the last position of every group of ``group`` (``(B, N)`` long, negative for none); -1 where empty."""
    place = torch.arange(group.shape[1], device=group.device).expand_as(group)
    last = place.new_full((len(group), groups), -1)
    return last.scatter_reduce_(1, group.clamp(min=0), torch.where(group >= 0, place, -1), "amax")


def around(chosen: Tensor, grid: tuple[int, int] | None, candidates: Tensor) -> Tensor:
    """The candidates beside, above and below the chosen ones on the grid, ``(B, N)`` bool.

    Where there is no grid, those right before and behind them in the row of candidates.
    """
    if grid is None and not bool(candidates.all()):
        place, valid = compact(candidates)
        beside = around(chosen.gather(1, place) & valid, None, torch.ones_like(valid)) & valid
        return torch.zeros_like(candidates).scatter_(1, place, beside)
    flat = chosen.reshape(-1, *(grid or (1, chosen.shape[1])))
    out = torch.zeros_like(flat)
    out[:, 1:] |= flat[:, :-1]
    out[:, :-1] |= flat[:, 1:]
    out[:, :, 1:] |= flat[:, :, :-1]
    out[:, :, :-1] |= flat[:, :, 1:]
    return out.view_as(chosen) & ~chosen & candidates


def near(candidates: Tensor, grid: tuple[int, int] | None, count: int) -> Tensor:
    """``(B, N, N)`` bool: for each candidate those in the largest square window around it of at most ``count`` cells of the
    grid; in the longest run of as many candidates, where there is none. Memory B x N x N.
    """
    both = candidates[:, :, None] & candidates[:, None]
    if grid is None:
        rank = candidates.long().cumsum(1)
        return both & ((rank[:, :, None] - rank[:, None]).abs() <= (count - 1) // 2)
    reach = (math.isqrt(count) - 1) // 2
    place = torch.arange(candidates.shape[1], device=candidates.device)
    y, x = place // grid[1], place % grid[1]
    return both & ((y[:, None] - y).abs() <= reach) & ((x[:, None] - x).abs() <= reach)


__getattr__ = below(__name__)
