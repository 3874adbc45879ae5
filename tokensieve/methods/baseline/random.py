from dataclasses import dataclass

from torch import Tensor

from tokensieve.method import Method
from tokensieve.parts import select
from tokensieve.reduction import Reduction
from tokensieve.registry import register
from tokensieve.signals import Signals


@register("random")
@dataclass(frozen=True)
class Random(Method):
    """Keeps tokens at random: the baseline that every method has to beat.

    The draw depends on the seed and on the row's own contents, so a row draws the same in any batch.
    """

    sites = ("handoff", "prefill", "encoder", "cache", "vectors")
    unranked = "tokens are drawn"
    positional = "tokens are drawn"

    def score(self, s: Signals) -> Tensor:
        return s.noise()

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        return Reduction.keep(select.top(self.score(s), keep, s.valid))
