from dataclasses import dataclass

import torch
from torch import Tensor

from tokensieve.methods.cache.snapkv import SnapKV
from tokensieve.parts import budget, score, select
from tokensieve.reduction import Reduction
from tokensieve.registry import register
from tokensieve.signals import Signals


@register("adakv")
@dataclass(frozen=True)
class AdaKV(SnapKV):
    """SnapKV's votes, ranked over all heads of a layer at once: heads whose attention is spread out keep more entries.

    Source: arXiv 2407.11550. Every head is sure of its ``window`` last tokens and of the ``floor`` share of an even budget beyond
    them. Defaults are those of the public code (pooling "max" over 7). Deviation: the floor goes to each head's best, and the
    rest by rank, where the code shrinks the counts of one ranking towards the floor and rounds.
    """

    unit = "entry"
    kernel: int = 7
    pooling: str = "max"
    floor: float = 0.2

    def score(self, s: Signals) -> Tensor:
        return score.observed(s, self.needs[0], self.kernel, self.pooling, s.heads)

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        head, rank = s.heads, self.score(s)
        held = select.held(head, s.valid, int(head.max()) + 1)
        even = budget.allot(keep, (held > 0).float(), held)
        safe = score.recent(s, even.clamp(max=self.window), head)
        floor = torch.floor((even - self.window).clamp(min=0) * self.floor).long()
        safe = safe | select.top_of_each(rank, floor, head, s.valid & ~safe)
        return Reduction.keep(safe | select.top(rank, keep - safe.sum(1), s.valid & ~safe))
