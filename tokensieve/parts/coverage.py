"""Coverage: choose tokens so that everything there is to cover resembles one of them (facility location).

A *reach* is a function from positions ``(B, P)`` to how well the tokens there cover each of R targets, ``(B, P, R)``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tokensieve.parts.select import take

Reach = Callable[[Tensor], Tensor]

ROWS = 512
POOL = 16
HELD = 4096 * 4096
"""The largest number of pairs that are held all at once; beyond, they are computed when they are needed."""


@torch.no_grad()
def dots(unit: Tensor, more: Tensor | None = None) -> Reach:
    """Dot products of tokens ``(B, N, d)`` with all tokens, and then with the rows of ``more``, ``(B, T, d)``."""
    b, n, _ = unit.shape
    extra = 0 if more is None else more.shape[1]
    if n * (n + extra) > HELD:
        targets = unit if more is None else torch.cat([unit, more], 1)
        return lambda place: take(unit, place) @ targets.transpose(1, 2)
    table = unit.new_empty(b, n, n + extra)
    if more is not None:
        table[:, :, n:] = unit @ more.transpose(1, 2)
    for start in range(0, n, ROWS):
        rows = slice(start, min(start + ROWS, n))
        # Half of the pairs are computed; both ends see the same value.
        table[:, rows, start:n] = unit[:, rows] @ unit[:, start:].transpose(1, 2)
        table[:, rows.stop : n, rows] = table[:, rows, rows.stop : n].transpose(1, 2)
    return lambda place: take(table, place)


@torch.no_grad()
def calibrated(like: Reach, sharpness: Tensor, weight: Tensor, among: Tensor) -> Reach:
    """Turn likeness into shares: for each target a softmax over the candidates, times the target's weight.

    Args:
        sharpness, weight: ``(B, R)``, one over the temperature, and the weight of each target (0 leaves it out).
    """
    parts = []
    for place in _everything(among):
        bias = torch.where(among.gather(1, place), 0.0, -torch.inf)
        parts.append(torch.addcmul(bias[..., None], like(place), sharpness[:, None]).logsumexp(1))
    bias = weight.log() - torch.stack(parts).logsumexp(0)
    return lambda place: torch.addcmul(bias[:, None], like(place), sharpness[:, None]).exp_()


@torch.no_grad()
def cover(reach: Reach, count: Tensor, among: Tensor, scale: Tensor | None = None) -> Tensor:
    """Greedy facility location: each pick is the candidate that adds most to how well all targets are covered.

    A target is covered as well as by the best of the picks, and by nothing below 0. Gains only fall as picks are made,
    so one known from before is a bound: only candidates whose bounds lead are looked at again, and the picks are those of
    the plain greedy rule. Time at least N R for the first gains; memory B x 512 x R.

    Args:
        scale: ``(B, N)``, not negative; what a candidate's gain is multiplied by.
    """
    def gain(place: Tensor, covered: Tensor) -> Tensor:
        gained = (reach(place) - covered).clamp_(min=0).sum(2)
        return gained if scale is None else gained * scale.gather(1, place)

    covered = torch.zeros(len(among), 1, 1, device=among.device)
    bound = torch.cat([gain(place, covered) for place in _everything(among)], 1).masked_fill_(~among, -torch.inf)
    left, chosen, fresh = count.minimum(among.sum(1)), torch.zeros_like(among), torch.ones_like(among)
    for step in range(int(left.max())):
        lead = bound.argmax(1, keepdim=True)
        while not bool(fresh.gather(1, lead).all()):
            place = torch.cat([lead, bound.topk(min(POOL, bound.shape[1])).indices], 1)
            known = bound.gather(1, place)
            bound.scatter_(1, place, gain(place, covered).masked_fill_(known.isneginf(), -torch.inf))
            fresh.scatter_(1, place, True)
            lead = bound.argmax(1, keepdim=True)
        on = (step < left)[:, None]
        chosen |= torch.zeros_like(chosen).scatter_(1, lead, on)
        bound.scatter_(1, lead, -torch.inf)
        covered = torch.maximum(reach(lead), covered)
        fresh.zero_()
    return chosen


def covered(reach: Reach, chosen: Tensor) -> Tensor:
    """``(B,)``: what :func:`cover` makes large, the sum over targets of how well the chosen tokens cover each."""
    best = [
        reach(place).masked_fill(~chosen.gather(1, place)[..., None], 0.0).amax(1) for place in _everything(chosen)
    ]
    return torch.stack(best).amax(0).clamp(min=0).sum(1)


def _everything(among: Tensor) -> list[Tensor]:
    """All positions, in blocks ``(B, up to 512)``."""
    every = torch.arange(among.shape[1], device=among.device).expand(len(among), -1)
    return list(every.split(ROWS, 1))
