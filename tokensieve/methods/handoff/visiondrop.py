from dataclasses import dataclass

from torch import Tensor

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import CLSAttention, Keys
from tokensieve.core.options import option
from tokensieve.core.plan import descent, register_plan
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.core.stage import Stage
from tokensieve.methods.recurring import BUDGET, at_option, encoder_layer_option, first_option
from tokensieve.parts import budget, merge, score, select


@register_method("visiondrop", systems=[150])
@dataclass(frozen=True)
class VisionDrop(Method):
    """Keeps the tokens that visual tokens attend to, merges the rest into a few by key similarity, and never asks the text.

    Source: arXiv 2506.22283. After the encoder the score is the CLS token's attention, as in the public code; inside the
    language model (and where there is no CLS) the mean attention of the visual tokens to a token. ``contextual`` is the
    share of the budget for merged tokens, whose targets lie at equal steps along the rest. As a system the first stage
    keeps ``first`` times the mean that is asked for, and stages at the shares ``at`` of the depth the same share each (the
    public code's 48, then 35, 26 and 19 tokens at layers 8, 16 and 24 of 32). Deviations from that code: merged tokens are
    true means, and keys are compared with all heads side by side.
    """

    sites = ("handoff", "encoder", "prefill")
    positional = "contextual tokens lie evenly over the rest"
    contextual: float = option(0.125, "what goes to merged tokens", **BUDGET)
    first: float = first_option(1.5)
    at: tuple[float, ...] = at_option((0.25, 0.5, 0.75))
    encoder_layer: int = encoder_layer_option()

    @property
    def needs(self):
        return (CLSAttention(self.encoder_layer), Keys(self.encoder_layer))

    def score(self, s: Signals) -> Tensor:
        return score.attention(s, self.needs[0])

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        spare = budget.fraction_of(keep, self.contextual)
        dominant = select.top(self.score(s), keep - spare, s.valid)
        rest = s.valid & ~dominant
        targets = select.evenly(spare, rest)
        target, _ = merge.nearest(s.metric(self.needs[1], self.encoder_layer), targets)
        return Reduction.merge(dominant | targets, target.masked_fill(~rest, -1), s.weight)


@register_plan("visiondrop")
def visiondrop(method: VisionDrop, keep: budget.Budget) -> list[Stage]:
    """The same method behind the encoder and inside the language model."""
    return [Stage(method, budget.times(keep, method.first)), *descent(method, keep, method.at)]
