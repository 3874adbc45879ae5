from dataclasses import dataclass

from torch import Tensor

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import ReceivedAttention
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.methods.recurring import encoder_layer_option
from tokensieve.parts import score, select


@register_method("received-attention", systems=[364])
@dataclass(frozen=True)
class ByReceivedAttention(Method):
    """Keeps the vectors of the tokens that the encoder attends to most.

    Source: arXiv 2112.06540. ``encoder_layer`` is where attention is read, averaged over heads and queries; the last one
    as in the paper. Deviations: none for frozen encoders (the paper also trains with the pruning on).
    """

    site = "vectors"
    sites = ("vectors",)
    encoder_layer: int = encoder_layer_option(-1)

    @property
    def needs(self):
        return (ReceivedAttention(self.encoder_layer),)

    def score(self, s: Signals) -> Tensor:
        return score.attention(s, self.needs[0])

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        return Reduction.keep(select.top(self.score(s), keep, s.valid))
