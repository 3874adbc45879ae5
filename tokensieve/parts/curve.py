"""Curve: how many tokens to keep, read off the sorted scores of a row. Counts are ``(B,)`` long, at least 1."""

from __future__ import annotations

import torch
from torch import Tensor


def outliers(score: Tensor, among: Tensor, reach: float = 1.5) -> Tensor:
    """The number of candidates above Q3 + ``reach`` (Q3 - Q1), with quartiles interpolated linearly (Tukey's rule)."""
    held = among.sum(1, keepdim=True)
    rising = score.double().masked_fill(~among, torch.inf).sort(dim=1).values

    def quantile(q: float) -> Tensor:
        place = q * (held - 1)
        low = place.long()
        below, above = rising.gather(1, low), rising.gather(1, (low + 1).minimum(held - 1))
        return below + (place - low) * (above - below)

    first, third = quantile(0.25), quantile(0.75)
    above = (score.double() > third + reach * (third - first)) & among
    return above.sum(1).clamp(min=1)


def knee(score: Tensor, among: Tensor) -> Tensor:
    """The number of candidates in front of the knee of the falling curve, the point farthest below its chord.

    A curve that does not fall has no knee: all candidates count.
    """
    held = among.sum(1, keepdim=True)
    falling = score.double().masked_fill(~among, -torch.inf).sort(dim=1, descending=True).values
    step = torch.arange(score.shape[1], device=score.device)
    first, last = falling[:, :1], falling.gather(1, held - 1)
    below = (first - falling) / (first - last) - step / (held - 1).clamp(min=1)
    at = below.masked_fill(step >= held, -torch.inf).nan_to_num(nan=-torch.inf).argmax(1)
    return torch.where(first > last, at[:, None], held)[:, 0].clamp(min=1)


def within(count: Tensor, keep: Tensor, among: Tensor) -> Tensor:
    """The count, at most the budget; a row that the budget holds whole is kept whole, as every method does."""
    return torch.where(keep >= among.sum(1), keep, count.minimum(keep))
