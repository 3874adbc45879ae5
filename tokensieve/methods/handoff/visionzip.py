from dataclasses import dataclass

from torch import Tensor

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import CLSAttention, Keys
from tokensieve.core.options import option
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.methods.recurring import BUDGET, encoder_layer_option
from tokensieve.parts import budget, merge, score, select


@register_method("visionzip", systems=[380])
@dataclass(frozen=True)
class VisionZip(Method):
    """Dominant tokens by CLS attention; the rest merged into contextual tokens by key similarity.

    Source: arXiv 2412.04467. ``contextual`` is the share of the budget spent on contextual tokens (the paper's 10 of
    64); their targets lie at equal steps along the remaining tokens. Deviations: contextual tokens are true means, and
    keys are compared with all heads side by side, where the public code first averages them over heads. ``parity=True``
    adds the mean of the joining tokens onto the target and takes its targets at whole steps, as that code does.
    """

    positional = "contextual tokens lie evenly over the rest"

    contextual: float = option(10 / 64, "what goes to contextual tokens", **BUDGET)
    parity: bool = option(False, "whether to add the mean onto the target and step as the public code does")
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
        targets = (select.strided if self.parity else select.evenly)(spare, rest)
        target, _ = merge.nearest(s.metric(self.needs[1], self.encoder_layer), targets)
        target = target.masked_fill(~rest, -1)
        if not self.parity:
            return Reduction.merge(dominant | targets, target, s.weight)
        return Reduction.weighted(dominant | targets, target, merge.added_mean(dominant | targets, target))
