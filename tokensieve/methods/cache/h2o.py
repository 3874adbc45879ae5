from dataclasses import dataclass

from torch import Tensor

from tokensieve.core.method import CacheMethod
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import AccumulatedAttention
from tokensieve.core.options import option
from tokensieve.core.signals import Signals
from tokensieve.methods.recurring import BUDGET
from tokensieve.parts import budget, score, select


@register_method("h2o")
@dataclass(frozen=True)
class H2O(CacheMethod):
    """Keeps the heavy hitters, which gathered most attention from all queries so far, and the most recent tokens.

    Source: arXiv 2306.14048. ``recent`` is the share of the budget spent on recent tokens. Attention is summed over the query
    heads that share a key-value head. Deviations from the public code: sums are kept for each row of a batch, not over it; of a
    prompt, or a chunk of one, of more than ``queries`` tokens, so many stand for all, evenly spaced (512 of 8,192 cost 4% of the
    prefill; ``queries`` of the prompt's length gives the exact sums).
    """

    positional = "the most recent tokens stay"
    recent: float = option(0.5, "what goes to the most recent tokens", **BUDGET)
    queries: int = option(512, "how many queries of a pass are read, at most, and stand for all", lo=1, unit="tokens")

    @property
    def needs(self):
        return (AccumulatedAttention(queries=self.queries),)

    @property
    def min_kept(self) -> int:
        return 1

    def score(self, s: Signals) -> Tensor:
        return score.attention(s, self.needs[0])

    def always_keep(self, s: Signals, keep: Tensor) -> Tensor:
        return select.last(budget.fraction_of(keep, self.recent), s.valid)
