from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import Change, Staleness
from tokensieve.core.options import option
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.methods.recurring import BUDGET
from tokensieve.parts import select
from tokensieve.parts.merge import cluster

ROUNDS = 10
SHARES = 5
"""A cluster gives at most a fifth of what is chosen by change, before others have had their turn."""


@register_method("cat-pruning", systems=[308])
@dataclass(frozen=True)
class CATPruning(Method):
    """In each step of a denoiser the tokens that move most, cluster by cluster, and those that were left out longest.

    Source: arXiv 2502.00433. Tokens that are not chosen come back with what they had behind the last block when they last went
    through it. Three quarters of the budget go to those left out longest, the rest to the largest change since the last pass
    of all tokens: clusters of places and of features take turns, the one with the largest change first. ``steps=(0.3, 1.0)``
    has the first steps run whole, as the paper does. Deviations from the public code: the change is that of the state behind
    the last block, not of the noise it is projected to; staleness is the number of passes since the last one, not a decayed
    count of choices, and of equally stale tokens those that move more come first; clusters are made anew in each step, and
    each has an equal share of a turn; the keys and values of tokens that are left out are not kept for the others.
    """

    site = "diffusion"
    sites = ("diffusion",)
    denoises = {"form": "stream", "cached": True}
    unranked = "those left out longest stay too, however little they move"
    positional = "places are part of what groups are made of"
    small = {"clusters": 4}
    stale: float = option(0.75, "what goes to the tokens that were left out longest", **BUDGET)
    clusters: int = option(20, "how many groups of tokens take turns", lo=1, unit="clusters")
    spread: float = option(0.05, "what features weigh beside places where tokens are grouped", lo=0)

    @property
    def needs(self):
        return (Change, Staleness)

    def score(self, s: Signals) -> Tensor:
        return s.get(self.needs[0])[1]

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        change, (_, staleness) = self.score(s), s.get(self.needs[1])
        moving = keep - (keep.double() * self.stale).long()
        # From here on tokens stand in the order of their change: of equals the earlier one is the one that moves more.
        order = change.masked_fill(~s.valid, -torch.inf).argsort(dim=1, descending=True, stable=True)
        valid = s.valid.gather(1, order)
        chosen = select.top(-self._turn(s, order, moving), moving, valid)
        chosen |= select.top(staleness.gather(1, order), keep - moving, valid & ~chosen)
        return Reduction.keep(torch.zeros_like(s.valid).scatter_(1, order, chosen))

    def _turn(self, s: Signals, order: Tensor, moving: Tensor) -> Tensor:
        """``(B, N)`` double, of tokens in an order: when each one's cluster gives it, 0 first."""
        x = s.features * self.spread * (2 / s.features.shape[2]) ** 0.5
        x = x if s.spots is None else torch.cat([s.spots.to(x), x], 2)
        most = int(s.valid.sum(1).max().clamp(max=self.clusters))
        heads, target = cluster.means(x, s.valid.sum(1).clamp(max=most), s.valid, ROUNDS)
        group = (heads.long().cumsum(1) - 1).gather(1, target.clamp(min=0)).masked_fill(~s.valid, most)
        member = one_hot(group.gather(1, order), most + 1)[:, :, :most]
        nth = (member.cumsum(1) * member).sum(2) - 1
        # The first of its cluster in the order leads it, and clusters follow each other as their leads do.
        lead = torch.where(member.any(1), member.argmax(1), s.n)
        place = (member * lead.argsort(dim=1, stable=True).argsort(dim=1)[:, None]).sum(2)
        helping = ((moving + SHARES - 1) // SHARES).clamp(min=1)[:, None]
        return (nth // helping * most + place).double()
