from dataclasses import dataclass

from torch import Tensor

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import Rarity
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.parts import select


@register_method("idf", systems=[364])
@dataclass(frozen=True)
class Idf(Method):
    """Keeps the vectors of the tokens that are rarest in the collection.

    Source: arXiv 2112.06540. Deviations: none; equally rare tokens stay in the order of the text.
    """

    site = "vectors"
    sites = ("vectors",)
    needs = (Rarity,)

    def score(self, s: Signals) -> Tensor:
        return s.get(Rarity)[1]

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        return Reduction.keep(select.top(self.score(s), keep, s.valid))
