from dataclasses import dataclass

from torch import Tensor

from tokensieve.method import Method
from tokensieve.parts import budget, merge, score, select
from tokensieve.reduction import Reduction
from tokensieve.registry import register
from tokensieve.signals import CLSAttention, Keys, Signals


@register("visionzip", systems=[380])
@dataclass(frozen=True)
class VisionZip(Method):
    """Dominant tokens by CLS attention; the rest merged into contextual tokens by key similarity.

    Source: arXiv 2412.04467. ``contextual`` is the share of the budget spent on contextual tokens (the paper's 10 of 64);
    their targets lie at equal steps along the remaining tokens. Deviation: contextual tokens are true means;
    ``parity=True`` adds the mean of the joining tokens onto the target, as the public code does.
    """

    contextual: float = 10 / 64
    parity: bool = False
    encoder_layer: int = -2

    @property
    def needs(self):
        return (CLSAttention(self.encoder_layer), Keys(self.encoder_layer))

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        cls, keys = self.needs
        spare = budget.share(keep, self.contextual)
        dominant = select.top(score.attention(s, cls), keep - spare, s.valid)
        rest = s.valid & ~dominant
        targets = select.evenly(spare, rest)
        if not bool((spare > 0).all()):
            return Reduction.keep(dominant | targets)
        target, _ = merge.nearest(s.metric(keys, self.encoder_layer), targets)
        target = target.masked_fill(~rest, -1)
        if not self.parity:
            return Reduction.merge(dominant | targets, target)
        return Reduction.weighted(dominant | targets, target, merge.added_mean(dominant | targets, target))
