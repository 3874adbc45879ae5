"""Determinantal point processes: choose tokens that are good and unlike each other, by the volume they span."""

from __future__ import annotations

import torch
from torch import Tensor

from tokensieve.parts.numeric import twins
from tokensieve.parts.select import take, top
from tokensieve.parts.select.distance import LOOKAHEAD

NOTHING_NEW = 1e-5
"""The share of a token's own square below which what is new in it counts as rounding."""


@torch.no_grad()
def most_likely(vector: Tensor, count: Tensor, candidates: Tensor) -> Tensor:
    """Greedy maximum a posteriori choice under the kernel ``vector @ vector^T``: each pick adds most to its determinant.

    What a pick adds is the squared length of the part of its vector that earlier picks do not span. That only shrinks,
    so picks are found in batches as :func:`distance.greedy` does, and the Cholesky factor grows by a batch at a time. Once
    no candidate adds anything, the rest are those of greatest length. Time count N (d + count); memory count x N.

    Args:
        vector: ``(B, N, d)``, the tokens' directions, their lengths being how good they are.
    """
    first = twins.firsts(vector, candidates)
    square = twins.level(vector.square().sum(2), first)
    new, left = square.masked_fill(~candidates, -torch.inf), count.minimum(candidates.sum(1))
    chosen, factor = torch.zeros_like(candidates), vector.new_zeros(len(vector), 0, vector.shape[1])
    width = min(LOOKAHEAD, vector.shape[1])
    while int(left.max()) > 0:
        ahead, order = new.sort(dim=1, descending=True, stable=True)
        limit = ahead[:, width, None] if width < new.shape[1] else torch.full_like(ahead[:, :1], -torch.inf)
        pool = order[:, :width].sort(1).values
        inside = _levelled(_kernel(vector, factor, pool, pool), twins.within(first, pool))
        least = NOTHING_NEW * square.gather(1, pool)
        picks, gained, lower = _greedy(inside, new.gather(1, pool), least, limit, min(width, int(left.max())))
        fits = gained > limit
        fits[:, 0] = gained[:, 0] > 0
        fits &= torch.arange(picks.shape[1], device=picks.device) < left[:, None]
        most = int(fits.sum(1).max())
        if most == 0:
            break
        place, lower, fits = pool.gather(1, picks[:, :most]), lower[:, :most, :most], fits[:, :most]
        chosen |= left.new_zeros(chosen.shape).scatter_add_(1, place, fits.long()) > 0
        left = left - fits.sum(1)
        # Picks that do not fit stand at the end of a row: zeros on the right there are zeros in the solution.
        lower = torch.where(fits[..., None], lower, torch.eye(most, device=lower.device, dtype=lower.dtype))
        rows = _kernel(vector, factor, place).mul_(fits[..., None])
        grown = torch.linalg.solve_triangular(lower, rows, upper=False)
        factor = torch.cat([factor, grown], 1)
        new = twins.level(new - grown.square().sum(1), first).masked_fill_(chosen, -torch.inf)
        new.masked_fill_(new <= NOTHING_NEW * square, -torch.inf)
    return chosen | top(square, left, candidates & ~chosen)


def _kernel(vector: Tensor, factor: Tensor, rows: Tensor, columns: Tensor | None = None) -> Tensor:
    """What is left of the kernel at ``rows`` (and ``columns``, or all) once the factor's picks are taken out."""
    onto, spanned = (vector, factor) if columns is None else (take(vector, columns), _columns(factor, columns))
    return take(vector, rows) @ onto.transpose(1, 2) - _columns(factor, rows).transpose(1, 2) @ spanned


def _levelled(inside: Tensor, first: Tensor | None) -> Tensor:
    return twins.level(twins.level(inside, first, 1), first, 2)


def _columns(factor: Tensor, place: Tensor) -> Tensor:
    return factor.gather(2, place[:, None].expand(-1, factor.shape[1], -1))


def _greedy(inside: Tensor, new: Tensor, least: Tensor, limit: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Up to ``most`` greedy picks in a pool of P: their places in it, what each added, and their Cholesky factor."""
    picks, gains, spans = [], [], []
    new = new.masked_fill(new <= least, -torch.inf)
    for _ in range(most):
        gained, i = new.max(1, keepdim=True)
        span = inside.gather(1, i[..., None].expand(-1, -1, inside.shape[2]))[:, 0]
        span = span * gained.clamp(min=1e-30).rsqrt()
        picks.append(i)
        gains.append(gained)
        spans.append(span)
        if bool((gained <= limit).all()):
            break
        inside = inside - span[..., None] * span[:, None]
        new = (new - span.square()).scatter_(1, i, -torch.inf)
        new.masked_fill_(new <= least, -torch.inf)
    place = torch.cat(picks, 1)
    lower = torch.stack(spans, 1).gather(2, place[:, None].expand(-1, len(picks), -1)).transpose(1, 2).tril()
    return place, torch.cat(gains, 1), lower
