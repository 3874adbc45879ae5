"""Distance: choosing tokens by how far they lie from each other. Selections are ``(B, N)`` bool tensors, as in ``select``."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tokensieve.parts.numeric import twins
from tokensieve.parts.select import compact, take, top

ROWS = 512
LOOKAHEAD = 64
Join = Callable[[Tensor, Tensor], Tensor]


@torch.no_grad()
def farthest(metric: Tensor, count: Tensor, candidates: Tensor, start: Tensor | None = None) -> Tensor:
    """Greedy max-min diversity over cosine distances: each pick is the candidate farthest from those picked before it.

    The first pick is the candidate whose nearest other candidate is farthest; in rows where ``start``, ``(B, N)`` bool,
    names tokens that are there already, the one farthest from these, which are not picked again. Time N^2 D / 2 for the
    former and N count D for the rest; memory B x 512 x N.
    """
    unit = normalize(metric, dim=-1)
    start = torch.zeros_like(candidates) if start is None else start
    first = twins.firsts(metric, candidates | start)
    unit = unit if first is None else take(unit, first)
    candidates, chosen = candidates & ~start, torch.zeros_like(candidates)
    left = count.minimum(candidates.sum(1))
    bare = ~start.any(1)
    if bool(bare.any()):
        lone = _nearest_other(unit, candidates, first).masked_fill_(~candidates, torch.inf).argmin(1, keepdim=True)
        chosen.scatter_(1, lone, (bare & (left > 0))[:, None])
    place, valid = compact(start | chosen)
    anchors = take(unit, place).transpose(1, 2)
    near = [(rows @ anchors).masked_fill_(~valid[:, None], -torch.inf).amax(2) for rows in unit.split(ROWS, 1)]
    cost = torch.cat(near, 1)
    if first is not None:
        there = torch.zeros_like(candidates).scatter_(1, first.gather(1, place), valid)
        cost = twins.level(cost, first).masked_fill_(there.gather(1, first), 1.0)
    left = left - chosen.sum(1)
    join: Join = lambda cost, like: cost.maximum(like.amax(2))  # noqa: E731
    return chosen | greedy(unit, cost, left, candidates & ~chosen, join)


@torch.no_grad()
def greedy(unit: Tensor, cost: Tensor, count: Tensor, candidates: Tensor, join: Join) -> Tensor:
    """Greedy choice of the cheapest candidate, whose similarity to the others then raises their costs.

    Picks are found in batches. Since costs only grow, among the ``LOOKAHEAD`` candidates that are cheapest now the
    greedy order is the true one for as long as it stays below the next candidate's cost; then the rest catches up in one
    matrix product.

    Args:
        unit: ``(B, N, d)``, compared by dot product; cost: ``(B, N)``, what a candidate costs before any is picked.
        join: from costs ``(B, N)`` and the similarity of N tokens to K picks, ``(B, N, K)``, minus infinity where there is
            no pick, their costs afterwards, which must not be lower.
    """
    first = twins.firsts(unit, candidates)
    cost, left = cost.masked_fill(~candidates, torch.inf), count.minimum(candidates.sum(1))
    chosen = torch.zeros_like(candidates)
    width = min(LOOKAHEAD, cost.shape[1])
    while int(left.max()) > 0:
        ahead, order = cost.sort(dim=1, stable=True)
        limit = ahead[:, width, None] if width < cost.shape[1] else torch.full_like(ahead[:, :1], torch.inf)
        pool = order[:, :width].sort(1).values
        picks, price = _greedy(unit, first, cost, pool, limit, min(width, int(left.max())), join)
        fits = price < limit
        fits[:, 0] = price[:, 0] < torch.inf
        fits &= torch.arange(picks.shape[1], device=picks.device) < left[:, None]
        left = left - fits.sum(1)
        # A row that has run out of candidates repeats its picks.
        chosen |= left.new_zeros(chosen.shape).scatter_add_(1, picks, fits.long()) > 0
        like = _similarity(unit, first, picks).masked_fill_(~fits[:, None], -torch.inf)
        cost = join(cost, like).masked_fill_(chosen, torch.inf)
    return chosen


def _similarity(unit: Tensor, first: Tensor | None, index: Tensor) -> Tensor:
    like = unit @ take(unit, index).transpose(1, 2)
    if first is None:
        return like
    return twins.level(like, first).masked_fill_(twins.both(first, first.gather(1, index)), 1.0)


def _nearest_other(unit: Tensor, candidates: Tensor, first: Tensor | None) -> Tensor:
    """``(B, N)``: the similarity of each token to its most similar candidate other than itself; 1 between twins."""
    if first is not None:
        held = torch.zeros_like(first).scatter_add_(1, first, candidates.long()).gather(1, first)
        lead = candidates & (first == torch.arange(first.shape[1], device=first.device))
        return _nearest_other(unit, lead, None).clamp_(max=1.0).masked_fill_(held > 1, 1.0)
    n = unit.shape[1]
    out = unit.new_full(unit.shape[:2], -torch.inf)
    padded = not bool(candidates.all())
    for start in range(0, n, ROWS):
        rows = slice(start, min(start + ROWS, n))
        # Only the upper triangle is computed; both ends of a pair see the same value.
        like = unit[:, rows] @ unit[:, start:].transpose(1, 2)
        like[:, :, : like.shape[1]].diagonal(dim1=1, dim2=2).fill_(-torch.inf)
        if padded:
            like.masked_fill_(~(candidates[:, rows, None] & candidates[:, None, start:]), -torch.inf)
        out[:, rows] = out[:, rows].maximum(like.amax(2))
        out[:, start:] = out[:, start:].maximum(like.amax(1))
    return out


def _greedy(
    unit: Tensor, first: Tensor | None, cost: Tensor, pool: Tensor, limit: Tensor, most: int, join: Join
) -> tuple[Tensor, Tensor]:
    """Up to ``most`` greedy picks among the tokens ``pool``, and the cost of each when it was picked."""
    own = take(unit, pool)
    like = twins.square(own @ own.transpose(1, 2), twins.within(first, pool), 1.0)
    cost = cost.gather(1, pool)
    picks, prices = [], []
    for _ in range(most):
        price, i = cost.min(1, keepdim=True)
        picks.append(i)
        prices.append(price)
        if bool((price >= limit).all()):
            break
        cost = join(cost, like.gather(2, i[:, None].expand(-1, like.shape[1], -1))).scatter_(1, i, torch.inf)
    return pool.gather(1, torch.cat(picks, 1)), torch.cat(prices, 1)


@torch.no_grad()
def density_peaks(x: Tensor, count: Tensor, candidates: Tensor, neighbours: int | None = None) -> Tensor:
    """Cluster centres by density peaks: candidates that are dense, and far from any denser one.

    Density is exp(-mean squared distance to the nearest ``neighbours`` candidates, ``count[b]`` by default, itself
    included); a candidate's separation is its distance to the nearest denser one, the largest distance of the row for
    the densest. Centres have the highest product. Distances are Euclidean, divided by sqrt(D). Over M candidates: time
    M^2 D, memory B x 512 x M.
    """
    if int(count.max()) == 0:
        return torch.zeros_like(candidates)
    place, valid = compact(candidates)
    x = take(x, place) * x.shape[2] ** -0.5
    first = twins.firsts(x, valid)
    near = count if neighbours is None else torch.full_like(count, neighbours)
    k = near.minimum(candidates.sum(1)).clamp(min=1)[:, None]
    within = torch.arange(int(k.max()), device=x.device) < k
    # The logarithm of the density: far points would all be zero otherwise.
    density = [
        -(d.topk(within.shape[1], largest=False).values.masked_fill(~within[:, None], 0).sum(2) / k)
        for d in _squares(x, valid, first)
    ]
    dense = twins.level(torch.cat(density, 1), first)
    step = torch.arange(x.shape[1], device=x.device)
    separation, widest = [], []
    for rows, d in zip(step.split(ROWS), _squares(x, valid, first), strict=True):
        own = dense[:, rows, None]
        denser = (dense[:, None] > own) | ((dense[:, None] == own) & (step < rows[:, None]))
        separation.append(d.masked_fill(~(denser & valid[:, None]), torch.inf).amin(2))
        widest.append(d.masked_fill(~(valid[:, rows, None] & valid[:, None]), 0).amax(2))
    apart = torch.cat(separation, 1)
    apart = torch.where(apart.isinf(), torch.cat(widest, 1).amax(1, keepdim=True), apart)
    # Squared distances on both sides of the product keep its order: log(distance * density).
    centres = top(apart.clamp(min=torch.finfo(apart.dtype).tiny).log() / 2 + dense, count, valid)
    return torch.zeros_like(candidates).scatter_(1, place, centres) & candidates


def _squares(x: Tensor, valid: Tensor, first: Tensor | None) -> Iterator[Tensor]:
    """Squared distances of each block of rows to all rows, zero between twins, infinite to padding.

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
        if first is not None:
            row.masked_fill_(twins.both(first.split(ROWS, 1)[i], first), 0)
        yield row.masked_fill_(~valid[:, None], torch.inf)
