"""Select: which tokens stay. A selection is a ``(B, N)`` bool tensor, so `&`, `|` and `~` combine selections.

All functions take ``among`` (``(B, N)`` bool, the candidates) and ``count`` (``(B,)`` long, how many of them; at most
the candidates are taken). Ties go to the earlier position, and no row has an influence on another.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import normalize

ROWS = 512
LOOKAHEAD = 64


def compact(among: Tensor) -> tuple[Tensor, Tensor]:
    """The candidates' positions at the front of each row, ``(B, M)``, and which of them are real; M is at least 1."""
    held = among.sum(1, keepdim=True)
    width = max(int(held.max()), 1)
    place = (~among).to(torch.uint8).argsort(dim=1, stable=True)[:, :width]
    return place, torch.arange(width, device=among.device) < held


def take(x: Tensor, place: Tensor) -> Tensor:
    """``(B, M, D)``: the tokens of x at positions ``(B, M)``."""
    return x.gather(1, place[..., None].expand(-1, -1, x.shape[2]))


def ranked(score: Tensor, count: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """The ``count[b]`` candidates of highest score: positions, best first, ``(B, max count)``, and which are real."""
    count = count.minimum(among.sum(1))[:, None]
    # A candidate's minus infinity must still stand before what is no candidate.
    score = score.clamp(min=torch.finfo(score.dtype).min).masked_fill(~among, -torch.inf)
    order = score.argsort(dim=1, descending=True, stable=True)[:, : int(count.max())]
    return order, torch.arange(order.shape[1], device=score.device) < count


def top(score: Tensor, count: Tensor, among: Tensor) -> Tensor:
    """The ``count[b]`` candidates of highest score in each row."""
    return torch.zeros_like(among).scatter_(1, *ranked(score, count, among))


def held(group: Tensor, among: Tensor, groups: int) -> Tensor:
    """``(B, G)``: how many candidates each of ``groups`` groups holds; group: ``(B, N)`` long, negative for none."""
    inside = (among & (group >= 0)).long()
    return inside.new_zeros(len(group), groups).scatter_add_(1, group.clamp(min=0), inside)


def top_of_each(score: Tensor, count: Tensor, group: Tensor, among: Tensor) -> Tensor:
    """The ``count[b, g]`` candidates of highest score in every group g (crop, frame, window, cluster) of every row.

    Args:
        score: ``(B, N)``; count: ``(B, G)`` long; group: ``(B, N)`` long, negative for none.
    """
    groups = count.shape[1]
    place = torch.where(among & (group >= 0), group, groups)
    order = score.argsort(dim=1, descending=True, stable=True)
    order = order.gather(1, place.gather(1, order).argsort(dim=1, stable=True))
    place = place.gather(1, order)
    size = held(place, torch.ones_like(among), groups + 1)
    rank = torch.arange(place.shape[1], device=place.device) - (size.cumsum(1) - size).gather(1, place)
    limit = torch.cat([count, torch.zeros_like(count[:, :1])], 1).gather(1, place)
    return torch.zeros_like(among).scatter_(1, order, rank < limit)


def evenly(count: Tensor, among: Tensor) -> Tensor:
    """``count[b]`` candidates at equal steps along the row, starting with the first."""
    held = among.sum(1, keepdim=True)
    rank = among.long().cumsum(1) - 1
    step = count[:, None].minimum(held)
    # Rank r is chosen when r * count // held moves on: exactly `count` of `held` ranks do.
    moved = (rank * step) // held.clamp(min=1) != ((rank - 1) * step).div(held.clamp(min=1), rounding_mode="floor")
    return among & moved & (step > 0)


def strided(count: Tensor, among: Tensor) -> Tensor:
    """The first ``count[b]`` candidates at whole steps of ``candidates // count``, as VisionZip's code takes them."""
    rank = among.long().cumsum(1) - 1
    step = (among.sum(1, keepdim=True) // count[:, None].clamp(min=1)).clamp(min=1)
    return among & (rank % step == 0) & (rank // step < count[:, None])


def cells(count: Tensor, among: Tensor, grid: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
    """Exactly ``count[b]`` near-equal cells of the grid; of the row, where there is none or it holds padding.

    About ``sqrt(count * height / width)`` bands of rows, each cut into almost equally many cells.

    Returns:
        centres ``(B, N)`` bool, and for every candidate the index of its cell's centre, ``(B, N)`` long, -1 elsewhere.
    """
    held = among.sum(1, keepdim=True)
    place = torch.arange(among.shape[1], device=among.device).expand_as(among)
    rank = among.long().cumsum(1) - 1
    whole = held == among.shape[1]
    high, wide = (1, among.shape[1]) if grid is None else grid
    h, w = torch.where(whole, high, 1), torch.where(whole, wide, held)
    y, x = torch.where(whole, place // wide, 0), torch.where(whole, place % wide, rank)

    k = count[:, None].minimum(held)
    bands = (k * h / w).sqrt().round().long().maximum(-(-k // w)).minimum(h.minimum(k))
    band = ((y + 1) * bands - 1) // h
    first = band * k // bands
    across = (band + 1) * k // bands - first
    cell = ((x + 1) * across - 1) // w
    centre_y = (band * h // bands + (band + 1) * h // bands - 1) // 2
    centre_x = (cell * w // across + (cell + 1) * w // across - 1) // 2
    centre = (y == centre_y) & (x == centre_x) & among
    order, _ = compact(among)
    target = order.gather(1, (centre_y * w + centre_x).clamp(0, order.shape[1] - 1))
    return centre, torch.where(among, target, -1)


def around(chosen: Tensor, grid: tuple[int, int] | None) -> Tensor:
    """The tokens beside, above and below the chosen ones on the grid (beside, where there is none), ``(B, N)`` bool."""
    flat = chosen.reshape(-1, *(grid or (1, chosen.shape[1])))
    out = torch.zeros_like(flat)
    out[:, 1:] |= flat[:, :-1]
    out[:, :-1] |= flat[:, 1:]
    out[:, :, 1:] |= flat[:, :, :-1]
    out[:, :, :-1] |= flat[:, :, 1:]
    return out.view_as(chosen) & ~chosen


@torch.no_grad()
def farthest(metric: Tensor, count: Tensor, among: Tensor, start: Tensor | None = None) -> Tensor:
    """Greedy max-min diversity over cosine distances: each pick is the candidate farthest from those picked before it.

    The first pick is the candidate whose nearest other candidate is farthest; in rows where ``start`` (``(B, N)`` bool)
    names tokens that are there already, the one farthest from these, which are not picked again. Time N^2 D / 2 for the
    former and N count D for the rest; memory B x 512 x N.

    Picks are found in batches. Similarities to what is picked only grow, so among the ``LOOKAHEAD`` candidates that are
    farthest now the greedy order is the true one for as long as it stays below the next candidate's similarity; then
    the rest catches up in one matrix product.
    """
    n = metric.shape[1]
    unit = normalize(metric, dim=-1)
    start = torch.zeros_like(among) if start is None else start
    among = among & ~start
    left = count.minimum(among.sum(1))
    chosen = torch.zeros_like(among)
    bare = ~start.any(1)
    if bool(bare.any()):
        pick = _nearest_other(unit, among).masked_fill_(~among, torch.inf).argmin(1, keepdim=True)
        chosen.scatter_(1, pick, (bare & (left > 0))[:, None])
        left = left - chosen.sum(1)
    place, real = compact(start | chosen)
    near = torch.cat(
        [_similarity(x, unit, place).masked_fill_(~real[:, None], -torch.inf).amax(2) for x in unit.split(ROWS, 1)], 1
    )
    near = near.masked_fill_(~among | chosen, torch.inf)
    width = min(LOOKAHEAD, n)
    while int(left.max()) > 0:
        ahead, order = near.sort(dim=1, stable=True)
        limit = ahead[:, width, None] if width < n else torch.full_like(ahead[:, :1], torch.inf)
        pool = order[:, :width].sort(1).values
        picks, similarity = _greedy(unit, near, pool, limit, min(width, int(left.max())))
        fits = similarity < limit
        fits[:, 0] = similarity[:, 0] < torch.inf
        fits &= torch.arange(picks.shape[1], device=picks.device) < left[:, None]
        left = left - fits.sum(1)
        # A row that has run out of candidates repeats its picks.
        chosen |= left.new_zeros(chosen.shape).scatter_add_(1, picks, fits.long()) > 0
        fresh = _similarity(unit, unit, picks).masked_fill_(~fits[:, None], -torch.inf).amax(2)
        near = near.maximum(fresh).masked_fill_(chosen, torch.inf)
    return chosen


def _similarity(rows: Tensor, unit: Tensor, index: Tensor) -> Tensor:
    return rows @ take(unit, index).transpose(1, 2)


def _nearest_other(unit: Tensor, among: Tensor) -> Tensor:
    """``(B, N)``: the similarity of each token to its most similar candidate other than itself."""
    n = unit.shape[1]
    out = unit.new_full(unit.shape[:2], -torch.inf)
    padded = not bool(among.all())
    for start in range(0, n, ROWS):
        rows = slice(start, min(start + ROWS, n))
        # Only the upper triangle is computed; both ends of a pair see the same value.
        like = unit[:, rows] @ unit[:, start:].transpose(1, 2)
        like[:, :, : like.shape[1]].diagonal(dim1=1, dim2=2).fill_(-torch.inf)
        if padded:
            like.masked_fill_(~(among[:, rows, None] & among[:, None, start:]), -torch.inf)
        out[:, rows] = out[:, rows].maximum(like.amax(2))
        out[:, start:] = out[:, start:].maximum(like.amax(1))
    return out


def _greedy(unit: Tensor, near: Tensor, pool: Tensor, limit: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Up to ``most`` greedy picks among the tokens ``pool``, and each one's similarity to what was picked before."""
    own = take(unit, pool)
    like = own @ own.transpose(1, 2)
    near = near.gather(1, pool)
    picks, lows = [], []
    for _ in range(most):
        low, i = near.min(1, keepdim=True)
        picks.append(i)
        lows.append(low)
        if bool((low >= limit).all()):
            break
        near = near.maximum(like.gather(1, i[..., None].expand(-1, -1, like.shape[2]))[:, 0]).scatter_(1, i, torch.inf)
    return pool.gather(1, torch.cat(picks, 1)), torch.cat(lows, 1)


@torch.no_grad()
def density_peaks(x: Tensor, count: Tensor, among: Tensor) -> Tensor:
    """Cluster centres by density peaks: candidates that are dense, and far from any denser one.

    Density is exp(-mean squared distance to the nearest ``count[b]`` candidates, itself included); a candidate's
    separation is its distance to the nearest denser one, the largest distance of the row for the densest. Centres have
    the highest product. Distances are Euclidean, divided by sqrt(D). Over M candidates: time M^2 D, memory B x 512 x M.
    """
    if int(count.max()) == 0:
        return torch.zeros_like(among)
    place, real = compact(among)
    x = take(x, place) * x.shape[2] ** -0.5
    k = count.minimum(among.sum(1)).clamp(min=1)[:, None]
    within = torch.arange(int(k.max()), device=x.device) < k
    # The logarithm of the density: far points would all be zero otherwise.
    density = [
        -(d.topk(within.shape[1], largest=False).values.masked_fill(~within[:, None], 0).sum(2) / k)
        for d in _squares(x, real)
    ]
    dense = torch.cat(density, 1)
    step = torch.arange(x.shape[1], device=x.device)
    separation, widest = [], []
    for rows, d in zip(step.split(ROWS), _squares(x, real), strict=True):
        own = dense[:, rows, None]
        denser = (dense[:, None] > own) | ((dense[:, None] == own) & (step < rows[:, None]))
        separation.append(d.masked_fill(~(denser & real[:, None]), torch.inf).amin(2))
        widest.append(d.masked_fill(~(real[:, rows, None] & real[:, None]), 0).amax(2))
    apart = torch.cat(separation, 1)
    apart = torch.where(apart.isinf(), torch.cat(widest, 1).amax(1, keepdim=True), apart)
    # Squared distances on both sides of the product keep its order: log(distance * density).
    centres = top(apart.clamp(min=torch.finfo(apart.dtype).tiny).log() / 2 + dense, count, real)
    return torch.zeros_like(among).scatter_(1, place, centres) & among


def _squares(x: Tensor, real: Tensor) -> Iterator[Tensor]:
    """Squared distances of each block of rows to all rows, infinite to padding.

    Both ends of a pair see the same value to the last bit: two tokens nearest to each other tie in density.
    """
    blocks, norms = x.split(ROWS, 1), x.square().sum(2).split(ROWS, 1)

    def square(i: int, j: int) -> Tensor:
        if i > j:
            return square(j, i).transpose(1, 2)
        dot = blocks[i] @ blocks[j].transpose(1, 2)
        d = (norms[i][..., None] + norms[j][:, None] - 2 * dot).clamp_(min=0)
        if i == j:
            d = d.minimum(d.transpose(1, 2))
            d.diagonal(dim1=1, dim2=2).fill_(0)
        return d

    for i in range(len(blocks)):
        row = torch.cat([square(i, j) for j in range(len(blocks))], 2)
        yield row.masked_fill_(~real[:, None], torch.inf)
