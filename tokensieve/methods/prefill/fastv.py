from dataclasses import dataclass

from torch import Tensor

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import LastAttention
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.parts import score, select


@register_method("fastv")
@dataclass(frozen=True)
class FastV(Method):
    """Keeps the visual tokens to which the last prompt token attends most in an early language-model layer.

    Source: arXiv 2403.06764. Attention is averaged over heads; the layer is the paper's K = 2. Where no attention row
    is given it is computed from the last text embedding. Deviations from the public code: none in the selection.
    """

    site = "prefill"
    sites = ("prefill",)
    layer = 2

    @property
    def needs(self):
        return (LastAttention,)

    def score(self, s: Signals) -> Tensor:
        return score.last_row(*score.text_rows(s, LastAttention))

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        return Reduction.keep(select.top(self.score(s), keep, s.valid))
