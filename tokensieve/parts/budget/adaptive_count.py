"""Curve: how many tokens to keep, read off the sorted scores of a row. Counts are ``(B,)`` long, at least 1."""

from __future__ import annotations

import torch
from torch import Tensor


def outliers(score: Tensor, candidates: Tensor, reach: float = 1.5) -> Tensor:
    """The number of candidates above Q3 + ``reach`` (Q3 - Q1), with quartiles interpolated linearly (Tukey's rule)."""
    n_valid = candidates.sum(1, keepdim=True)
    rising = score.double().masked_fill(~candidates, torch.inf).sort(dim=1).values

    def quantile(q: float) -> Tensor:
        place = q * (n_valid - 1)
        low = place.long()
        below, above = rising.gather(1, low), rising.gather(1, (low + 1).minimum(n_valid - 1))
        return below + (place - low) * (above - below)

    first, third = quantile(0.25), quantile(0.75)
    above = (score.double() > third + reach * (third - first)) & candidates
    return above.sum(1).clamp(min=1)


def knee(score: Tensor, candidates: Tensor) -> Tensor:
    """The number of candidates above the knee of the falling curve, the point farthest from the line between its ends.

    A curve that is a line has no knee: all candidates count.
    """
    n_valid = candidates.sum(1, keepdim=True)
    falling = score.double().masked_fill(~candidates, -torch.inf).sort(dim=1, descending=True).values
    place = torch.arange(score.shape[1], device=score.device)
    falling = torch.where(place < n_valid, falling, 0.0)
    first, last = falling[:, :1], falling.gather(1, n_valid - 1)
    # Across the line and straight down differ by one factor for the whole row.
    off = (falling - first - (last - first) * place / (n_valid - 1).clamp(min=1)).abs() * (place < n_valid)
    most, wide = off.amax(1, keepdim=True), first - last
    # The first of points that are equally far, but for rounding.
    at = (off >= most - 1e-9 * wide).to(torch.uint8).argmax(1, keepdim=True)
    above = ((falling > falling.gather(1, at)) & (place < n_valid)).sum(1)
    return torch.where(most[:, 0] > 1e-6 * wide[:, 0], above.clamp(min=1), n_valid[:, 0])


def within(count: Tensor, keep: Tensor, candidates: Tensor) -> Tensor:
    """The count, at most the budget; a row that the budget holds whole is kept whole, as every method does."""
    return torch.where(keep >= candidates.sum(1), keep, count.minimum(keep))
