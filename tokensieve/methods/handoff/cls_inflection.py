from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import CLSAttention
from tokensieve.core.options import option
from tokensieve.core.plan import register_plan
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.core.stage import Stage
from tokensieve.methods.prefill.text_attention import TextRanking
from tokensieve.methods.recurring import DEPTH, encoder_layer_option
from tokensieve.parts import budget, score, select
from tokensieve.parts.budget import adaptive_count


@register_method("cls-inflection", systems=[316])
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
        count = adaptive_count.within(adaptive_count.knee(saliency, s.valid), keep, s.valid)
        return Reduction.keep(select.top(saliency, count, s.valid))


@register_plan("cls-inflection")
def cls_inflection(method: CLSInflection, keep: budget.Budget) -> list[Stage]:
    """In front of the inflection, then by the text."""
    first, mean = budget.times(keep, 1.2), budget.mean(keep)
    return [Stage(method, first), Stage(TextRanking(), mean, layers=(method.cut,))]
