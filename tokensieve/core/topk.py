"""Top-k: the tokens of highest score; ties go to the earlier position, and no row has an influence on another."""

from __future__ import annotations

import torch
from torch import Tensor


def ranked(score: Tensor, count: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """The ``count[b]`` candidates of highest score: positions, best first, ``(B, max count)``, and which are real."""
    count = count.minimum(candidates.sum(1))[:, None]
    # A candidate's minus infinity must still stand before what is no candidate.
    score = score.clamp(min=torch.finfo(score.dtype).min).masked_fill(~candidates, -torch.inf)
    order = score.argsort(dim=1, descending=True, stable=True)[:, : int(count.max())]
    return order, torch.arange(order.shape[1], device=score.device) < count


def ranks(score: Tensor, candidates: Tensor) -> Tensor:
    """``(B, N)`` long: each candidate's place in the order of scores, 0 for the highest; -1 elsewhere."""
    order, valid = ranked(score, candidates.sum(1), candidates)
    place = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.full_like(candidates, -1, dtype=torch.long).scatter_(1, order, torch.where(valid, place, -1))


def top(score: Tensor, count: Tensor, candidates: Tensor) -> Tensor:
    """The ``count[b]`` candidates of highest score in each row."""
    return torch.zeros_like(candidates).scatter_(1, *ranked(score, count, candidates))
