from dataclasses import dataclass

from torch import Tensor

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import CLSAttention, Keys
from tokensieve.core.options import option
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.methods.recurring import COSINE, SHARE, encoder_layer_option
from tokensieve.parts import budget, score, select
from tokensieve.parts.score import crops
from tokensieve.parts.select import groups


@register_method("token-correlation", systems=[8])
@dataclass(frozen=True)
class TokenCorrelation(Method):
    """Gives crops a budget by how little their patches repeat each other, and samples patches by CLS attention.

    Source: arXiv 2407.14439. A patch is redundant where its keys have a cosine above ``cosine_threshold`` with more than the
    share ``often`` of its crop's patches; a crop's information density is the share of its patches that are not. Budgets are
    in proportion to density times size (thumbnail included), and inside each crop tokens are drawn without replacement
    with the probabilities that CLS attention gives. Deviations from the paper: density shares out the given budget
    instead of setting a count, no tokens are merged into the sampled ones, one layer's attention serves for local and
    global sampling, and the two thresholds are ours, since no code is public.
    """

    pairs = True
    small = {"cosine_threshold": 0.2, "often": 0.4}
    positional = "tokens are drawn"
    cosine_threshold: float = option(
        0.7, "above which cosine similarity of keys two patches repeat each other", was="alike", **COSINE
    )
    often: float = option(0.1, "how much of its crop may repeat a patch that is not redundant", **SHARE)
    encoder_layer: int = encoder_layer_option()

    @property
    def needs(self):
        return (CLSAttention(self.encoder_layer), Keys(self.encoder_layer))

    def score(self, s: Signals) -> Tensor:
        return score.attention(s, self.needs[0])

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        group, number = crops.of(s)
        held = select.group_sizes(group, s.valid, number)
        often = groups.count_similar(
            s.metric(self.needs[1], self.encoder_layer), self.cosine_threshold, group, s.valid, number
        )
        size = held.gather(1, group)
        weight = groups.sums((often <= self.often * size).double(), group, s.valid, number)
        weight[:, -1] = 0
        count = budget.allot(keep, weight, held)
        return Reduction.keep(select.top_of_each(select.drawn(self.score(s), s.noise()), count, group, s.valid))
