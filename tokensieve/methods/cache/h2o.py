from dataclasses import dataclass

from torch import Tensor

from tokensieve.method import Method
from tokensieve.needs import AccumulatedAttention
from tokensieve.parts import budget, score, select
from tokensieve.registry import register
from tokensieve.signals import Signals


@register("h2o")
@dataclass(frozen=True)
class H2O(Method):
    """Keeps the heavy hitters, which gathered most attention from all queries so far, and the most recent tokens.

    Source: arXiv 2306.14048. ``recent`` is the share of the budget spent on recent tokens. Attention is summed over the query
    heads that share a key-value head. Deviation from the public code: sums are kept for each row of a batch, not over it.
    """

    site = "cache"
    sites = ("cache",)
    recent: float = 0.5

    @property
    def needs(self):
        return (AccumulatedAttention(),)

    @property
    def protected(self) -> int:
        return 1

    def score(self, s: Signals) -> Tensor:
        return score.attention(s, self.needs[0])

    def safe(self, s: Signals, keep: Tensor) -> Tensor:
        return select.last(budget.share(keep, self.recent), s.valid)
