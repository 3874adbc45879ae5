"""Coverage: choose tokens so that everything there is to cover resembles one of them (facility location).

How well tokens cover each of R targets is given as :data:`~tokensieve.parts.numeric.similarity.Rows`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokensieve.parts.numeric import similarity
from tokensieve.parts.numeric.similarity import Rows

POOL = 16


@torch.no_grad()
def calibrated(like: Rows, sharpness: Tensor, weight: Tensor, candidates: Tensor) -> Rows:
    """Turn similarity into shares: for each target a softmax over the candidates, times the target's weight.

    Args:
        sharpness, weight: ``(B, R)``, one over the temperature, and the weight of each target (0 leaves it out).
    """
    parts = []
    for place in similarity.blocks(candidates):
        bias = torch.where(candidates.gather(1, place), 0.0, -torch.inf)
        parts.append(torch.addcmul(bias[..., None], like(place), sharpness[:, None]).logsumexp(1))
    bias = weight.log() - torch.stack(parts).logsumexp(0)
    return lambda place: torch.addcmul(bias[:, None], like(place), sharpness[:, None]).exp_()


@torch.no_grad()
def cover(
    reach: Rows, count: Tensor, candidates: Tensor, scale: Tensor | None = None, bonus: Tensor | None = None
) -> Tensor:
    """``(B, N)`` bool: the picks of :func:`covering`."""
    return covering(reach, count, candidates, scale, bonus) >= 0


@torch.no_grad()
def covering(
    reach: Rows, count: Tensor, candidates: Tensor, scale: Tensor | None = None, bonus: Tensor | None = None
) -> Tensor:
    """``(B, N)`` long, each pick's place in the order of picks, 0 for the first, and -1 elsewhere.

    Greedy facility location: each pick is the candidate that adds most to how well all targets are covered.

    A target is covered as well as by the best of the picks, and by nothing below 0. Gains only fall as picks are made,
    so one known from before is a bound: only candidates whose bounds lead are looked at again, and the picks are those of
    the plain greedy rule. Time at least N R for the first gains; memory B x 512 x R.

    Args:
        scale: ``(B, N)``, not negative; what a candidate's gain is multiplied by.
        bonus: ``(B, N)``, what it adds of its own.
    """

    def gain(place: Tensor, covered: Tensor) -> Tensor:
        gained = (reach(place) - covered).clamp_(min=0).sum(2)
        gained = gained if scale is None else gained * scale.gather(1, place)
        return gained if bonus is None else gained + bonus.gather(1, place)

    covered = torch.zeros(len(candidates), 1, 1, device=candidates.device)
    bound = torch.cat([gain(place, covered) for place in similarity.blocks(candidates)], 1).masked_fill_(
        ~candidates, -torch.inf
    )
    left, fresh = count.minimum(candidates.sum(1)), torch.ones_like(candidates)
    order = torch.full_like(candidates, -1, dtype=torch.long)
    for step in range(int(left.max())):
        lead, width = bound.argmax(1, keepdim=True), POOL
        while not bool(fresh.gather(1, lead).all()):
            place = torch.cat([lead, bound.topk(min(width, bound.shape[1])).indices], 1)
            known = bound.gather(1, place)
            bound.scatter_(1, place, gain(place, covered).masked_fill_(known.isneginf(), -torch.inf))
            fresh.scatter_(1, place, True)
            lead, width = bound.argmax(1, keepdim=True), min(2 * width, similarity.ROWS)
        on = (step < left)[:, None]
        order.scatter_(1, lead, torch.where(on, step, order.gather(1, lead)))
        bound.scatter_(1, lead, -torch.inf)
        covered = torch.maximum(reach(lead), covered)
        fresh.zero_()
    return order


def covered(reach: Rows, chosen: Tensor) -> Tensor:
    """``(B,)``: what :func:`cover` makes large, the sum over targets of how well the chosen tokens cover each."""
    best = [
        reach(place).masked_fill(~chosen.gather(1, place)[..., None], 0.0).amax(1)
        for place in similarity.blocks(chosen)
    ]
    return torch.stack(best).amax(0).clamp(min=0).sum(1)
