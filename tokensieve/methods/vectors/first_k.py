from dataclasses import dataclass

from torch import Tensor

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals


@register_method("first-k", systems=[364])
@dataclass(frozen=True)
class FirstK(Method):
    """Keeps the first vectors of a document, as if it ended there.

    Source: arXiv 2112.06540. Its documents were read with all their tokens first, as here; deviations: none.
    """

    site = "vectors"
    sites = ("vectors",)
    inert = {"features": "the first tokens stay, whatever they hold"}
    favours = ("early",)

    def score(self, s: Signals) -> Tensor:
        return -s.valid.to(s.features.dtype).cumsum(1)

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        return Reduction.keep(s.valid & (s.valid.cumsum(1) <= keep[:, None]))
