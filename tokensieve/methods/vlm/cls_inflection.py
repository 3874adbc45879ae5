from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from tokensieve.core.options import option
from tokensieve.method import Method
from tokensieve.methods.recurring import DEPTH, encoder_layer_option
from tokensieve.methods.vlm.text_attention import ByText
from tokensieve.needs import CLSAttention
from tokensieve.parts import budget, curve, score, select
from tokensieve.plan import Stage
from tokensieve.reduction import Reduction
from tokensieve.registry import register
from tokensieve.signals import Signals


@register("cls-inflection", systems=[316])
@dataclass(frozen=True)
class CLSInflection(Method):
    """Keeps the visual tokens in front of the inflection of their sorted CLS scores, then the text-relevant among them.

    Source: arXiv 2409.01162. An image's count is the number of tokens above the point of the falling curve that lies
    farthest from its chord, and at most the budget; the second cut, ``text-attention``, runs at ``cut`` of the
    language model's depth. In the plan of both, the first stage may keep 1.2 times the mean. Deviations from the paper,
    which has no public code: CLS attention stands for the similarity to the CLS token, and the inflection is the knee
    of the curve.
    """

    adaptive = True
    encoder_layer: int = encoder_layer_option()
    cut: float = option(0.5, "where the second stage of the whole system lies", **DEPTH)

    @property
    def needs(self):
        return (CLSAttention(self.encoder_layer),)

    def score(self, s: Signals) -> Tensor:
        return score.attention(s, self.needs[0])

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        saliency = self.score(s)
        count = curve.within(curve.knee(saliency, s.valid), keep, s.valid)
        return Reduction.keep(select.top(saliency, count, s.valid))

    def stages(self, keep: budget.Budget) -> Sequence[Stage]:
        first, mean = budget.times(keep, 1.2), budget.mean(keep)
        return (Stage(self, first), Stage(ByText(), mean, layers=(self.cut,)))
