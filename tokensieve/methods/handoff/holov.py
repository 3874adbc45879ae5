from dataclasses import dataclass

import torch
from torch import Tensor

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import CLSAttention
from tokensieve.core.options import option
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.methods.recurring import encoder_layer_option
from tokensieve.parts import budget, score, select
from tokensieve.parts.select import groups


@register_method("holov")
@dataclass(frozen=True)
class HoloV(Method):
    """Shares the budget out over crops of the image by attention and variety, and keeps each crop's most attended tokens.

    Source: arXiv 2510.02912. A crop's weight is the mean over its tokens of CLS attention plus ``alpha`` times the
    variance of a token's cosines to the others of the crop, both relative to their means over the image. Defaults are the
    public code's, which cuts the row of tokens into ``crops`` pieces of equal length; here they are near-square cells of
    the grid (pieces of the row, where there is no grid). Other deviations from it: it scales the variance to the attention
    within each crop, where it cancels out of the weights; a token's cosine to itself is no part of the variance; what a
    crop cannot hold goes to the others (there, the output is filled up with zeros); what rounding down leaves over goes by
    largest remainder (there, to the crops of the largest weights).
    """

    pairs = True
    small = {"crops": 4}
    positional = "every crop has its own budget"
    crops: int = option(16, "into how many cells the image is cut", lo=1, unit="cells")
    alpha: float = option(0.09, "what a cell's variety weighs beside its attention", lo=0)
    encoder_layer: int = encoder_layer_option()

    @property
    def needs(self):
        return (CLSAttention(self.encoder_layer),)

    def score(self, s: Signals) -> Tensor:
        return score.attention(s, self.needs[0])

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        attention = self.score(s)
        centre, target = select.cells(torch.full_like(keep, self.crops), s.valid, s.grid)
        crop = (centre.long().cumsum(1) - 1).gather(1, target.clamp(min=0)).masked_fill(~s.valid, -1)
        held = select.group_sizes(crop, s.valid, self.crops)
        value = _relative(attention, s.valid)
        value = value + self.alpha * _relative(groups.variety(s.features, crop, self.crops, s.valid), s.valid)
        weight = torch.zeros(held.shape, device=s.device).scatter_add_(1, crop.clamp(min=0), value.float() * s.valid)
        quota = budget.allot(keep, (weight / held.clamp(min=1)).clamp(min=0), held)
        return Reduction.keep(select.top_of_each(attention, quota, crop, s.valid))


def _relative(value: Tensor, candidates: Tensor) -> Tensor:
    """Values over their mean among the candidates."""
    return score.normalized(value, candidates) * candidates.sum(1, keepdim=True)
