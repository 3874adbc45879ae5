from dataclasses import dataclass

from torch import Tensor

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import CLSAttention
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.methods.recurring import encoder_layer_option
from tokensieve.parts import score, select


@register_method("fastervlm", systems=[57])
@dataclass(frozen=True)
class FasterVLM(Method):
    """Keeps the visual tokens to which the encoder's CLS token attends most.

    Source: arXiv 2412.01818. Attention is averaged over heads, at the layer the features are taken from
    (``encoder_layer``). Deviations from the public code: none in the selection; an encoder without CLS is scored by
    mean received attention.
    """

    sites = ("handoff", "encoder")
    encoder_layer: int = encoder_layer_option()

    @property
    def needs(self):
        return (CLSAttention(self.encoder_layer),)

    def score(self, s: Signals) -> Tensor:
        return score.attention(s, self.needs[0])

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        return Reduction.keep(select.top(self.score(s), keep, s.valid))
