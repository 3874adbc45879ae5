from dataclasses import dataclass

from torch import Tensor

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import CLSAttention
from tokensieve.core.options import option
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.methods.recurring import BUDGET, encoder_layer_option
from tokensieve.parts import budget, score, select
from tokensieve.parts.score import crops
from tokensieve.parts.select import groups


@register_method("hired", systems=[52])
@dataclass(frozen=True)
class HiRED(Method):
    """Splits a fixed budget over thumbnail and crops by early CLS attention, then keeps the best of each by late one.

    Source: arXiv 2408.10945. ``alpha`` is the thumbnail's share of the budget; the rest goes to the crops in proportion
    to the thumbnail's CLS attention at ``budget_layer`` (counted from the front) over the part of the picture that each
    shows. Inside each, tokens are ranked by its own CLS attention at ``encoder_layer``. A picture without crops is
    ranked as a whole. Deviations from the public code: attention is summed over a region, as in the paper, where the
    code counts the strongest tokens and cuts the thumbnail into runs of tokens instead of regions; the total is exact,
    what a full crop cannot take goes to the others.
    """

    favours = ("cls_attention",)
    alpha: float = option(0.5, "what goes to the thumbnail", **BUDGET)
    budget_layer: int = option(0, "the encoder layer whose attention shares the rest out over the crops", unit="layer")
    encoder_layer: int = encoder_layer_option()

    @property
    def needs(self):
        return (CLSAttention(self.budget_layer), CLSAttention(self.encoder_layer))

    def score(self, s: Signals) -> Tensor:
        return score.attention(s, self.needs[1])

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        group, number = crops.of(s)
        held = select.group_sizes(group, s.valid, number)
        thumbnail = budget.fraction_of(keep, self.alpha).minimum(held[:, 0]).maximum(keep - held[:, 1:].sum(1))
        room = held.clone()
        room[:, 0] = 0
        count = budget.allot(keep - thumbnail, self._looks(s, group, number) if number > 2 else room, room)
        count[:, 0] = thumbnail
        return Reduction.keep(select.top_of_each(self.score(s), count, group, s.valid))

    def _looks(self, s: Signals, group: Tensor, number: int) -> Tensor:
        region = crops.regions(crops.spots(s), group, s.valid, number)
        return groups.sums(score.attention(s, self.needs[0]), region, s.valid, number)
