from dataclasses import dataclass

from torch import Tensor

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import TextAttention
from tokensieve.core.options import option
from tokensieve.core.plan import descent, register_plan
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.core.stage import Stage
from tokensieve.methods.prefill.text_attention import TextRanking
from tokensieve.methods.recurring import COSINE
from tokensieve.parts import budget, score, select
from tokensieve.parts.score import temporal

SHALLOW = 0.25
"""The share of the language model's depth that merged tokens go through before they are pruned."""


@register_method("framefusion", systems=[397])
@dataclass(frozen=True)
class FrameFusion(Method):
    """Merges tokens that hardly differ from the same place of the frame before, then prunes by attention.

    Source: arXiv 2501.01986. A token of cosine ``cosine_threshold`` or more to its predecessor may join it, the most similar
    first, and chains of them become one average at their first frame; merging stops at the budget. What is still too
    much is pruned by the attention of the text, a merged token counting as the mean of its members. As a plan, merging
    to twice the mean budget happens at the input of the first layer and ``text-attention`` follows at a quarter of
    the depth. Deviations from the public code: one merging pass in place of one per layer until a tenth is left to
    merge; attention of the text alone, where the code averages over all queries; ranks within a frame name the place.
    """

    site = "handoff"
    sites = ("handoff", "prefill")
    cosine_threshold: float = option(
        0.6,
        "from which cosine similarity to the same place of the frame before a token may join it",
        was="similarity",
        **COSINE,
    )

    @property
    def needs(self):
        return (TextAttention,)

    def score(self, s: Signals) -> Tensor:
        return score.mean_row(*score.text_rows(s, TextAttention))

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        link = temporal.before(temporal.frames(s))
        like = temporal.linked_cosine(s.features.detach(), link)
        joins = select.top(like, s.valid.sum(1) - keep, like >= self.cosine_threshold)
        merged = Reduction.merge(s.valid & ~joins, temporal.chain(link, joins).masked_fill(~s.valid, -1), s.weight)
        left = merged.apply(self.score(s)[..., None])[..., 0]
        return merged.then(Reduction.keep(select.top(left, keep, merged.mask)))


@register_plan("framefusion")
def framefusion(method: FrameFusion, keep: budget.Budget) -> list[Stage]:
    """Merging behind the encoder, pruning inside the language model."""
    return [Stage(method, budget.times(keep, 2)), *descent(TextRanking(), keep, (SHALLOW,))]
