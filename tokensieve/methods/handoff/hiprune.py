from dataclasses import dataclass

from torch import Tensor

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import ReceivedAttention
from tokensieve.core.options import option
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.methods.recurring import BUDGET, clip_layer_option, encoder_layer_option
from tokensieve.parts import budget, score, select


@register_method("hiprune", systems=[27])
@dataclass(frozen=True)
class HiPrune(Method):
    """Keeps anchors by middle-layer attention, their grid neighbours as buffers, and registers by deep attention.

    Source: arXiv 2508.00553. Attention is the mean that a token receives, so no CLS is needed. ``alpha`` is the share
    of the budget for anchors and buffers (the paper's 0.1), a fifth of it anchors. ``object_layer`` is the paper's 9th of
    CLIP-L's 24 layers, counted from the end; scaled in a model whose encoder has another depth. Without a grid the buffers
    are the neighbours in the sequence. Deviations from the public code: buffers never wrap around a row's edge, nor do
    anchors in the first or last row bring the image's first or last token; the budget is per image and exact (the code
    divides it by the batch), halves round up, and attention paid by a CLS token counts only where the signal includes it.
    """

    small = {"alpha": 0.6}
    positional = "neighbours of the anchors stay"

    alpha: float = option(0.1, "what goes to anchors and their neighbours", **BUDGET)
    object_layer: int = clip_layer_option(-16, "the encoder layer that chooses anchors")
    encoder_layer: int = encoder_layer_option()

    @property
    def needs(self):
        return (ReceivedAttention(self.object_layer, depth=24), ReceivedAttention(self.encoder_layer))

    def score(self, s: Signals) -> Tensor:
        return score.attention(s, self.needs[1])

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        middle, deep = score.attention(s, self.needs[0]), self.score(s)
        anchors = select.top(middle, budget.fraction_of(keep, self.alpha / 5), s.valid)
        buffers = select.top(middle, keep - anchors.sum(1), select.around(anchors, s.grid, s.valid))
        chosen = anchors | buffers
        return Reduction.keep(chosen | select.top(deep, keep - chosen.sum(1), s.valid & ~chosen))
