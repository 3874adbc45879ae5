"""Marginal relevance: choose tokens that matter and that say what others chosen do not (maximal marginal relevance)."""

from __future__ import annotations

import torch
from torch import Tensor

from tokensieve.core.topk import ranks
from tokensieve.parts.numeric import twins
from tokensieve.parts.select import take


@torch.no_grad()
def marginal(unit: Tensor, relevance: Tensor, count: Tensor, candidates: Tensor, trade: float) -> Tensor:
    """``(B, N)`` long: each pick's place in the order of picks, 0 for the first; -1 elsewhere.

    Each pick is the candidate of the largest ``trade * relevance - (1 - trade) * similarity to the most similar pick``, which is
    0 in front of the first. Source: Carbonell and Goldstein, SIGIR 1998 (doi 10.1145/290941.291025). Time N count d; memory N.

    Args:
        unit: ``(B, N, d)``, compared by dot product; relevance: ``(B, N)``; trade: in [0, 1], 1 for relevance alone.
    """
    first = twins.firsts(unit, candidates)
    left = count.minimum(candidates.sum(1))
    worth = (trade * relevance).masked_fill(~candidates, -torch.inf)
    worth = twins.level(worth, first)
    order = torch.full_like(candidates, -1, dtype=torch.long)
    nearest = torch.zeros_like(relevance)
    for step in range(int(left.max())):
        lead = (worth - (1 - trade) * nearest).argmax(1, keepdim=True)
        on = (step < left)[:, None]
        order.scatter_(1, lead, torch.where(on, step, order.gather(1, lead)))
        worth.scatter_(1, lead, -torch.inf)
        like = twins.level((unit @ take(unit, lead).transpose(1, 2))[..., 0], first)
        if first is not None:
            like = like.masked_fill(twins.both(first, first.gather(1, lead))[..., 0], 1.0)
        # Opposite directions repeat nothing, and are no gain beside a pick that is nothing like either.
        nearest = like.clamp(min=0) if step == 0 else nearest.maximum(like)
    return order


def behind(order: Tensor, score: Tensor, candidates: Tensor) -> Tensor:
    """``order`` with the candidates that have no place in it put behind those that have, by their score."""
    rest = candidates & (order < 0)
    return torch.where(rest, ranks(score, rest) + (order >= 0).sum(1, keepdim=True), order)
