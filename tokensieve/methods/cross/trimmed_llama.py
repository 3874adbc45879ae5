from dataclasses import dataclass

from torch import Tensor

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import TextAttention
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.parts import score, select


@register_method("trimmed-llama", systems=[268])
@dataclass(frozen=True)
class TrimmedLlama(Method):
    """Keeps the image keys that any head of the first cross-attention layer attends to most; later ones see only these.

    Source: arXiv 2504.00557. Each head ranks the keys by attention, summed over text tokens, and the union of what the heads
    rank highest stays. Deviation: the paper lets every head take the same share, and the union is as large as it comes; here
    that share grows until the union meets the budget, and of the last rank those go first to which the text attends most on
    average over heads.
    """

    site = "cross"
    sites = ("cross",)

    @property
    def needs(self):
        return (TextAttention,)

    def score(self, s: Signals) -> Tensor:
        return -select.union(score.text_heads(s, TextAttention), s.valid).float()

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        return Reduction.keep(select.top(self.score(s), keep, s.valid))
