from dataclasses import dataclass

import torch
from torch import Tensor

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import CLSAttention, TextAttention
from tokensieve.core.options import option
from tokensieve.core.plan import descent, register_plan
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.core.stage import Stage
from tokensieve.methods.recurring import SHARE, encoder_layer_option
from tokensieve.parts import budget, score, select
from tokensieve.parts.select import distance

AHEAD = 1.05
"""What stands in front of the language model, over the mean to be held: the last layers need less."""


@register_method("todre", systems=[30])
@dataclass(frozen=True)
class ToDRE(Method):
    """Keeps a diverse subset by greedy k-center from the most attended token on; late in the model nearly all tokens leave.

    Source: arXiv 2505.18757, first version. The first pick has the highest CLS attention (averaged over heads, at the
    layer the features are taken from), each next one the smallest similarity to its most similar pick. As a system it is
    two stages, of which `todre-late` is the second. No public code; deviation from the second version of the paper: that
    one picks the smallest sum of similarities to all picks.
    """

    pairs = True
    encoder_layer: int = encoder_layer_option()

    @property
    def needs(self):
        return (CLSAttention(self.encoder_layer),)

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        attention = score.attention(s, self.needs[0])
        first = select.top(attention, torch.ones_like(keep), s.valid)
        return Reduction.keep(first | distance.farthest(s.features, keep - 1, s.valid, first))


@register_plan("todre")
def todre(method: ToDRE, keep: budget.Budget) -> list[Stage]:
    """A diverse subset, then nearly none late in the language model."""
    return [Stage(method, budget.times(keep, AHEAD)), *descent(ToDRELate(), keep, (7 / 8,))]


@register_method("todre-late", systems=[30])
@dataclass(frozen=True)
class ToDRELate(Method):
    """The late stage of ToDRE: where the text hardly attends to the image any more, all its tokens but one leave.

    Source: arXiv 2505.18757. The stage lies at 7/8 of the depth. Attention has faded where the text tokens' mean attention
    to all visual tokens together (averaged over heads) is below ``fade``, the paper's threshold. Deviations: one token,
    the most attended, stays, since an image cannot hold none; attention of visual tokens to the text is not asked for,
    which is 0 where the image stands before the question; where attention has not faded the most attended tokens stay, as
    many as the budget allows.
    """

    site = "prefill"
    sites = ("prefill",)
    adaptive = True
    fade: float = option(0.1, "below which attention of the text to all visual tokens together they leave", **SHARE)

    @property
    def needs(self):
        return (TextAttention,)

    def score(self, s: Signals) -> Tensor:
        return score.mean_row(*score.text_rows(s, TextAttention))

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        attention = self.score(s)
        faded = (attention * s.valid).sum(1) < self.fade
        return Reduction.keep(select.top(attention, torch.where(faded, 1, keep), s.valid))
