from dataclasses import dataclass

from torch import Tensor

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import CLSAttention
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.methods.recurring import clip_layer_option
from tokensieve.parts import score, select


@register_method("vtc-cls", systems=[6])
@dataclass(frozen=True)
class VTCCLS(Method):
    """Keeps the visual tokens to which the encoder's CLS token attends most, over several of its layers together.

    Source: arXiv 2412.05819. Attention is averaged over heads and over ``encoder_layers``; the default is the public
    code's, layers 16 to 22 of CLIP-L's 24 (counted from the end; scaled in a model whose encoder has another depth).
    Deviations from the public code: none in the selection; an encoder without CLS is scored by mean received attention.
    """

    encoder_layers: tuple[int, ...] = clip_layer_option(
        (-8, -7, -6, -5, -4, -3, -2), "the encoder layers over which attention is averaged"
    )

    @property
    def needs(self):
        return (CLSAttention(*self.encoder_layers, depth=24),)

    def score(self, s: Signals) -> Tensor:
        return score.attention(s, self.needs[0])

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        return Reduction.keep(select.top(self.score(s), keep, s.valid))
