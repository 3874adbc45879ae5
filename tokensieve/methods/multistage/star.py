from dataclasses import dataclass

from torch import Tensor

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import ReceivedAttention
from tokensieve.core.plan import descent, register_plan
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.core.stage import Stage
from tokensieve.methods.prefill.text_attention import TextRanking
from tokensieve.methods.recurring import at_option, encoder_layer_option, first_option
from tokensieve.parts import budget, score, select


@register_method("star", systems=[287])
@dataclass(frozen=True)
class STAR(Method):
    """Keeps the tokens that other visual tokens attend to, then, at a later language-model layer, those the text attends to.

    Source: arXiv 2505.12359. This is the first stage: mean attention received in the encoder (``encoder_layer``); the
    second is ``text-attention``. As a system the first keeps ``first`` times the mean that is asked for, and the second, at the
    share ``at`` of the depth, what meets it; both values are ours, since the paper sets them for each model.
    Deviations: the score is the encoder's own attention, where the paper writes softmax(H H^T / sqrt(d)) over the
    embeddings; the mean runs over queries (as printed it runs over keys, and every token scores the same).
    """

    sites = ("handoff", "encoder")
    first: float = first_option(1.5)
    at: float = at_option(0.5)
    encoder_layer: int = encoder_layer_option()

    @property
    def needs(self):
        return (ReceivedAttention(self.encoder_layer),)

    def score(self, s: Signals) -> Tensor:
        return score.attention(s, self.needs[0])

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        return Reduction.keep(select.top(self.score(s), keep, s.valid))


@register_plan("star")
def star(method: STAR, keep: budget.Budget) -> list[Stage]:
    """By attention in the encoder, then by that of the text."""
    return [Stage(method, budget.times(keep, method.first)), *descent(TextRanking(), keep, (method.at,))]
