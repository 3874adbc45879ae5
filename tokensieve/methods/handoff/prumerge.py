from dataclasses import dataclass

from torch import Tensor

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import CLSAttention, Keys
from tokensieve.core.options import option
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.methods.recurring import encoder_layer_option
from tokensieve.parts import merge, score, select
from tokensieve.parts.budget import adaptive_count


@register_method("prumerge")
@dataclass(frozen=True)
class PruMerge(Method):
    """Keeps the outliers of CLS attention, and merges every other token into the kept one with the most similar keys.

    Source: arXiv 2403.15388. The count is the number of tokens above Q3 + 1.5 (Q3 - Q1) of the image's CLS attention, at
    most the budget. Merged tokens are means weighed by CLS attention. ``plus=True`` is PruMerge+: tokens at equal steps
    along the rest fill the budget. Deviations from the public code: each token joins its nearest kept one (there, every
    kept token adds its 32 nearest of all others, unnormalised, and a sum of all dropped ones is appended), counts are
    those of each image, PruMerge+ steps along what is left to an exact count (there, along the whole row, about three
    times as many as outliers), and attention, averaged over heads, and keys are of the layer that features leave from
    (there, the last, all heads taken as one).
    """

    adaptive = True
    plus: bool = option(False, "whether tokens at equal steps fill the budget (PruMerge+)")
    encoder_layer: int = encoder_layer_option()

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "adaptive", not self.plus)

    @property
    def needs(self):
        return (CLSAttention(self.encoder_layer), Keys(self.encoder_layer))

    def score(self, s: Signals) -> Tensor:
        return score.attention(s, self.needs[0])

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        saliency = self.score(s)
        count = adaptive_count.within(adaptive_count.outliers(saliency, s.valid), keep, s.valid)
        chosen = select.top(saliency, count, s.valid)
        if self.plus:
            chosen = chosen | select.evenly(keep - chosen.sum(1), s.valid & ~chosen)
        target, _ = merge.nearest(s.metric(self.needs[1], self.encoder_layer), chosen)
        return Reduction.merge(chosen, target.masked_fill(~s.valid, -1), saliency.clamp(min=1e-9) * s.weight)
