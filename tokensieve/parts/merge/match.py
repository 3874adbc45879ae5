"""Match: bipartite soft matching, which merges the most similar pairs of tokens."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tokensieve.core.needs import Need
from tokensieve.core.signals import Signals
from tokensieve.parts import merge
from tokensieve.parts.numeric import twins
from tokensieve.parts.select import compact, ranks, take, top

BLOCK = 1024
HELD = 4096
"""The largest number of tokens whose similarities :func:`distinct` holds (64 MB)."""


def metric(s: Signals, need: Need) -> Tensor:
    """Keys averaged over heads, ``(B, N, d)``; as they are where their heads are joined, or features stand in."""
    _, x = s.get(need)
    return x if x.dim() == 3 else x.mean(1, dtype=torch.float64).to(x.dtype)


@torch.no_grad()
def bipartite(metric: Tensor, count: Tensor, candidates: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Merge the candidates down to ``count[b]`` of them by rounds of bipartite soft matching.

    A round lets at most half of the tokens leave, so that it ends exactly at the count; before the next one the
    metric of merged tokens is averaged with their weights. Time N^2 D / 3; memory 512 x N and once the metric.

    Args:
        metric: ``(B, N, d)``, compared by cosine; candidates: ``(B, N)`` bool; weight: ``(B, N)``, tokens behind each token.

    Returns:
        the tokens that stay, ``(B, N)`` bool, and the token that each candidate joins, ``(B, N)`` long, -1 elsewhere.
    """
    n_valid = candidates.sum(1)
    count = count.minimum(n_valid)
    full = bool(candidates.all())
    if full and bool((n_valid - count <= n_valid // 2).all()):  # one round does
        gone, into = pairs(metric, n_valid - count, candidates)
        return ~gone, into
    place, valid = compact(candidates)
    x = metric if full else take(metric, place)
    w = weight.gather(1, place) * valid
    owner = (candidates.long().cumsum(1) - 1).clamp(min=0)
    while bool((n_valid > count).any()):
        leave = (n_valid - count).minimum(n_valid // 2)
        gone, into = pairs(x, leave, valid)
        n_valid = n_valid - leave
        stay = valid & ~gone
        front, valid = compact(stay)
        owner = (stay.long().cumsum(1) - 1).gather(1, into).gather(1, owner)
        place = place.gather(1, front)
        if bool((n_valid > count).any()):
            x, w = _averaged(x, w, gone, into, front)
    chosen = torch.zeros_like(candidates).scatter_(1, place, valid)
    return chosen, torch.where(candidates, place.gather(1, owner), -1)


@torch.no_grad()
def celled(
    metric: Tensor, count: Tensor, candidates: Tensor, grid: tuple[int, int] | None, cell: int
) -> tuple[Tensor, Tensor]:
    """Merge the candidates down to ``count[b]``: those outside the destinations join the most similar one, best first.

    The destination of each cell of ``cell`` x ``cell`` tokens is its first token. Similarities are computed in blocks.

    Args, and what is returned: as of :func:`bipartite`.

    Raises:
        ValueError: no grid, one that the cell does not divide, or a count below the number of cells.
    """
    if grid is None or grid[0] % cell or grid[1] % cell:
        raise ValueError(
            f"cell={cell} does not divide the grid {grid}; take a side that divides both of its sides, or cell=None, which needs "
            "no grid"
        )
    place = torch.arange(candidates.shape[1], device=metric.device)
    heads = ((place // grid[1] % cell == 0) & (place % grid[1] % cell == 0)).expand_as(candidates) & candidates
    held = heads.sum(1)
    if bool((count < held).any()):
        raise ValueError(
            f"{int(count.min())} of {candidates.shape[1]} tokens are to stay; cell={cell} has {int(held.max())} destinations, "
            f"which all stay: keep at least {int(held.max())} (a share of {1 / cell**2:.3g}), or take a larger cell, or cell=None"
        )
    others = candidates & ~heads
    onto, like = merge.nearest(metric, heads, asked=others)
    leaving = top(like, candidates.sum(1) - count, others)
    return candidates & ~leaving, torch.where(leaving, onto, place).masked_fill(~candidates, -1)


def pairs(x: Tensor, leave: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """One round: of the tokens at even places, the ``leave[b]`` most similar to one at an odd place join it.

    Args:
        x: ``(B, n, d)``; valid: ``(B, n)`` bool, True at the front of each row; leave: ``(B,)``, at most half of those.

    Returns:
        which tokens leave, ``(B, n)`` bool, and the place each joins, ``(B, n)`` long, its own where it stays.
    """
    value, partner = _partners(x, valid)
    leaving = top(value, leave, valid[:, ::2])
    gone = torch.zeros_like(valid)
    gone[:, ::2] = leaving
    into = torch.arange(x.shape[1], device=x.device).repeat(x.shape[0], 1)
    into[:, ::2] = torch.where(leaving, 2 * partner + 1, into[:, ::2])
    return gone, into


def _partners(x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """For each token at an even place the cosine with the most similar one at an odd place, and which of these it is.

    With a twin it is 1, and of twins it is the first."""
    first, width = twins.firsts(x, valid), x.shape[1]
    scale = 1 / torch.linalg.vector_norm(x, dim=-1).clamp(min=1e-12)
    odd, onto = x[:, 1::2].transpose(1, 2), scale[:, None, 1::2]
    place = torch.arange(width, device=x.device).expand_as(valid)
    # The first of each kind at an odd place, and at an even one; the width where there is none.
    odd_lead, even_lead = (place, place) if first is None else (_lead(first, valid, 1), _lead(first, valid, 0))
    bias = torch.where(valid & (odd_lead == place), 0.0, -torch.inf)[:, None, 1::2]
    blocks = x[:, ::2].split(max(BLOCK // len(x), 64), 1)
    best = [torch.addcmul(bias, rows @ odd, onto).max(-1) for rows in blocks]
    value, index = torch.cat([b.values for b in best], 1) * scale[:, ::2], torch.cat([b.indices for b in best], 1)
    if first is None:
        return value, index
    twin, own = odd_lead[:, ::2], even_lead[:, ::2].clamp(max=width - 1) // 2
    value, index = value.gather(1, own), index.gather(1, own)
    return torch.where(twin < width, 1.0, value), torch.where(twin < width, twin // 2, index)


def _lead(first: Tensor, valid: Tensor, side: int) -> Tensor:
    """``(B, n)``: the first token of each one's kind at an odd (1) or an even (0) place; n where there is none."""
    n = first.shape[1]
    place = torch.arange(n, device=first.device).expand_as(first)
    own = torch.where(valid & (place % 2 == side), place, n)
    return torch.full_like(first, n).scatter_reduce_(1, first, own, "amin").gather(1, first)


def _averaged(x: Tensor, w: Tensor, gone: Tensor, into: Tensor, front: Tensor) -> tuple[Tensor, Tensor]:
    """Metric and weight of the tokens at ``front``, after the gone ones joined theirs."""
    weight = torch.zeros_like(w).scatter_add_(1, into, w).gather(1, front)
    slot = torch.zeros_like(into).scatter_(1, front, torch.arange(front.shape[1], device=x.device).expand_as(front))
    leaving = gone.flatten().nonzero()[:, 0]
    joining = x.flatten(0, 1).index_select(0, leaving).mul_(w.flatten()[leaving, None])
    out = take(x, front).mul_(w.gather(1, front)[..., None])
    out.flatten(0, 1).index_add_(0, _flat(slot.gather(1, into), out)[leaving], joining)
    return out.div_(weight.where(weight > 0, 1.0)[..., None]), weight


def _flat(place: Tensor, x: Tensor) -> Tensor:
    """Places within rows as places in all rows on end."""
    return (place + torch.arange(x.shape[0], device=x.device)[:, None] * x.shape[1]).flatten()


@torch.no_grad()
def distinct(x: Tensor, valid: Tensor, count: Tensor, step: Tensor) -> Tensor:
    """``(B, n)`` bool: ``count[b]`` tokens of each row that are left after rounds that remove duplicates.

    In a round the ``step[b]`` tokens at even places that are most similar to one at an odd place leave; fewer in the last one,
    and never more than are at even places with a partner. For the next round those that stay at even places move to the
    front, the most similar first. Up to ``HELD`` tokens, similarities are computed once and held.

    Args:
        x: ``(B, n, d)``, compared by cosine; valid: ``(B, n)`` bool, True at the front of each row.
    """
    size = max(HELD**2 // max(x.shape[1], 1) ** 2, 1)
    each = zip(*(t.split(size) for t in (x, valid, count, step)), strict=True)
    return torch.cat([_rounds(*rows) for rows in each])


def _rounds(x: Tensor, valid: Tensor, count: Tensor, step: Tensor) -> Tensor:
    unit, out = normalize(x, dim=-1), torch.zeros_like(valid)
    like = twins.square(unit @ unit.transpose(1, 2), twins.firsts(x, valid), 1.0) if x.shape[1] <= HELD else None
    place = torch.arange(x.shape[1], device=x.device).expand_as(valid)
    valid = valid & (count > 0)[:, None]
    while bool(((n_valid := valid.sum(1)) > count).any()):
        leave = (n_valid - count).clamp(min=0).minimum(step).minimum(n_valid // 2)
        if like is None:
            value, _ = _partners(take(x, place), valid)
        else:
            odd = torch.zeros_like(out).scatter_(1, place[:, 1::2], valid[:, 1::2])
            value = take(like, place[:, ::2]).masked_fill_(~odd[:, None], -torch.inf).amax(2)
        rank, width = ranks(value, valid[:, ::2]), place.shape[1]
        order = torch.where(valid, torch.arange(width, width * 2, device=x.device), width * 2)
        order[:, ::2] = torch.where(rank >= leave[:, None], rank, width * 2)
        order, front = order.sort(dim=1, stable=True)
        most = int((n_valid - leave).max())
        place, valid = place.gather(1, front)[:, :most], order[:, :most] < width * 2
    return out.scatter_(1, place, valid)
