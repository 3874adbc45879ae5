from dataclasses import dataclass

from torch import Tensor

from tokensieve.core.method import CacheMethod
from tokensieve.core.method_registry import register_method
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.parts import select


@register_method("random")
@dataclass(frozen=True)
class Random(CacheMethod):
    """Keeps tokens at random: the baseline that every method has to beat.

    The draw depends on the seed and on the row's own contents, so a row draws the same in any batch.
    """

    site = "handoff"
    sites = ("handoff", "prefill", "encoder", "cache", "vectors", "diffusion")
    unranked = "tokens are drawn"
    positional = "tokens are drawn"

    def score(self, s: Signals) -> Tensor:
        return s.noise()

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        return Reduction.keep(select.top(self.score(s), keep, s.valid))
