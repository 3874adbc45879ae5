from dataclasses import dataclass

from torch import Tensor

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import CLSAttention
from tokensieve.core.options import option
from tokensieve.core.plan import descent, register_plan
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.core.stage import Stage
from tokensieve.methods.prefill.pyramiddrop import PyramidDrop
from tokensieve.methods.recurring import BUDGET, at_option, clip_layer_option, encoder_layer_option, first_option
from tokensieve.parts import budget, merge, score, select


@register_method("vscan", systems=[90])
@dataclass(frozen=True)
class VScan(Method):
    """Scans the image window by window with shallow CLS attention and as a whole with deep; all other tokens are merged in.

    Source: arXiv 2505.22654. ``local`` of the budget goes to the windows of ``window`` x ``window`` tokens in
    proportion to their size, by CLS attention at ``local_layer`` (the sixth of CLIP-L's 24 layers, counted from the
    end; scaled in an encoder of another depth); the rest to the highest deep attention. Tokens not kept are averaged
    into the kept one of the most similar features. As a system it keeps ``first`` times the mean that is asked for, and
    the last prompt token's attention prunes the rest at the share ``at`` of the language model's depth (the public
    code's 96, then 32 tokens from layer 16 of 32), by that layer's own queries and keys (a stage of ``pyramiddrop``).
    Deviations from the public code: the budget is exact (there, windows share it in whole numbers, and 40 tokens become
    36), and survivors of the second stage keep their position ids (there, they are numbered anew:
    ``positions="compact"``).
    """

    small = {"window": 2}
    positional = "windows of the grid share the budget"

    local: float = option(0.5, "what goes to the windows by shallow attention", **BUDGET)
    window: int = option(6, "the side of the windows", lo=1, unit="tokens")
    first: float = first_option(1.5)
    at: float = at_option(0.5)
    local_layer: int = clip_layer_option(-19, "the encoder layer whose attention ranks within windows")
    encoder_layer: int = encoder_layer_option()

    @property
    def needs(self):
        return (CLSAttention(self.local_layer, depth=24), CLSAttention(self.encoder_layer))

    def score(self, s: Signals) -> Tensor:
        return score.attention(s, self.needs[1])

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        group, number = select.windows(s.valid, s.grid, self.window)
        held = select.group_sizes(group, s.valid, number)
        quota = budget.allot(budget.fraction_of(keep, self.local), held.float(), held)
        chosen = select.top_of_each(score.attention(s, self.needs[0]), quota, group, s.valid)
        chosen = chosen | select.top(self.score(s), keep - chosen.sum(1), s.valid & ~chosen)
        target, _ = merge.nearest(s.features, chosen)
        return Reduction.merge(chosen, target.masked_fill(~s.valid, -1), s.weight)


@register_plan("vscan")
def vscan(method: VScan, keep: budget.Budget) -> list[Stage]:
    """Around the encoder, then by the text inside the language model."""
    return [Stage(method, budget.times(keep, method.first)), *descent(PyramidDrop(), keep, (method.at,))]
