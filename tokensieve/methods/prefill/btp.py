from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import LastAttention
from tokensieve.core.options import option
from tokensieve.core.plan import register_plan
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.core.stage import Stage
from tokensieve.methods.recurring import BUDGET
from tokensieve.parts import budget, score, select
from tokensieve.parts.select import distance

LAYERS = (3 / 32, 6 / 32, 14 / 32, 22 / 32)


@register_method("btp", systems=[91])
@dataclass(frozen=True)
class BTP(Method):
    """A share of the tokens by attention, the rest by diversity; early stages weigh diversity, late ones attention.

    Source: arXiv 2505.22038. Of the budget, ``balance`` goes to tokens by the last prompt token's attention, ``spatial`` to
    tokens spread evenly over the picture, and what is left to those farthest from all of these (cosine distance of the
    states). Against the bias of attention to late positions, the best ``rebalance`` times as many tokens are looked at, and
    those among the first M of the N tokens taken first (M is the whole budget). The defaults are the public code's first
    stage; its schedule halves the tokens before layers 3 and 6 of 32, thirds them before 14 and drops them all before 22,
    a mean of 22%: as a system it keeps the same share at each, whatever the mean;
    `tokensieve.planner.stages.btp` chooses the layers on a calibration batch. Deviations: that code also picks tokens by
    diversity alone before the union of all picks is filled up, which may overrun the budget; the even spread is a grid of
    cells, where it picks greedily by Manhattan distance.
    """

    site = "prefill"
    sites = ("prefill",)
    layer = 3
    pairs = True
    positional = "a part of the tokens lies evenly over the picture"
    balance: float = option(0.3, "what goes to the most attended tokens", **BUDGET)
    spatial: float = option(0.5, "what goes to tokens spread over the picture", **BUDGET)
    rebalance: float = option(
        3.7,
        "how many candidates for those by attention there are, of which early ones go first",
        lo=1,
        unit="times their number",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.balance + self.spatial > 1:
            raise ValueError(
                f"btp: balance={self.balance}, spatial={self.spatial}; they are shares of one budget, at most 1 together"
            )

    @property
    def needs(self):
        return (LastAttention,)

    def score(self, s: Signals) -> Tensor:
        return score.last_row(*score.text_rows(s, LastAttention))

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        wanted = torch.round(keep * self.balance).long()
        wide = torch.floor(wanted.double() * self.rebalance).long()
        looked = select.top(self.score(s), wide, s.valid)
        early = looked & (s.valid.long().cumsum(1) <= keep[:, None])
        chosen = select.top(self.score(s), wanted, early)
        chosen = chosen | select.top(self.score(s), wanted - chosen.sum(1), looked & ~early)
        spread = torch.round(keep * self.spatial).long().minimum(keep - wanted)
        even, _ = select.cells(spread.clamp(min=1), s.valid, s.grid)
        chosen = chosen | (even & (spread > 0)[:, None])
        return Reduction.keep(chosen | distance.farthest(s.features, keep - chosen.sum(1), s.valid, chosen))


@register_plan("btp")
def btp(method: BTP, keep: budget.Budget) -> list[Stage]:
    """The public code's four stages."""
    return schedule(keep, LAYERS, first=method)


def schedule(keep: budget.Budget, layers: Sequence[int | float], first: BTP | None = None) -> list[Stage]:
    """BTP's stages in front of the given layers, at most four; ``keep`` is the mean over all layers."""
    made = (first or BTP(), BTP(0.9, 0.0, 1.5), BTP(1.0, 0.0, 1.2), BTP(1.0, 0.0, 1.0))
    used = [made[i * len(made) // len(layers)] for i in range(len(layers))]
    left = range(len(layers), 0, -1)
    return [
        Stage(one, budget.mean(keep, steps), layers=(at,)) for one, steps, at in zip(used, left, layers, strict=True)
    ]
