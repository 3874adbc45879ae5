from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from tokensieve.method import Method
from tokensieve.needs import CLSAttention, TextAttention
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
    farthest from its chord, and at most the budget; the second cut, ``cls-inflection-l``, runs at ``cut`` of the
    language model's depth. In the plan of both, the first stage may keep 1.2 times the mean. Deviations from the paper,
    which has no public code: CLS attention stands for the similarity to the CLS token, and the inflection is the knee
    of the curve.
    """

    adaptive = True
    encoder_layer: int = -2
    cut: float = 0.5

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
        return (Stage(self, first), Stage(CLSInflectionL(), mean, layers=(self.cut,)))


@register("cls-inflection-l", systems=[316])
@dataclass(frozen=True)
class CLSInflectionL(Method):
    """Keeps the visual tokens to which the text tokens attend most inside the language model.

    Source: arXiv 2409.01162, its second stage. Deviation: relevance is the mean attention of all text tokens, by their
    embeddings' softmax over the visual tokens where no attention is read.
    """

    site = "prefill"
    sites = ("handoff", "prefill")

    @property
    def needs(self):
        return (TextAttention,)

    def score(self, s: Signals) -> Tensor:
        return score.mean_row(*score.text_rows(s, TextAttention))

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        return Reduction.keep(select.top(self.score(s), keep, s.valid))
