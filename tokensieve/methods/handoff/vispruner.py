from dataclasses import dataclass

import torch
from torch import Tensor

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import CLSAttention
from tokensieve.core.options import option
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.methods.recurring import BUDGET, encoder_layer_option
from tokensieve.parts import budget, score, select
from tokensieve.parts.merge import match


@register_method("vispruner")
@dataclass(frozen=True)
class VisPruner(Method):
    """Keeps important tokens by CLS attention, and diverse ones by removing duplicates from the rest in rounds.

    Source: arXiv 2412.01818, the published version (FasterVLM is its first). ``important`` is the share of the budget
    for important tokens. The rest, in order of attention, is split into tokens at even and at odd places, and the
    ``step`` even ones most similar to an odd one leave; the other even ones move to the front, the most similar first,
    and so on until the budget is met. ``step`` is for every 576 tokens of a row, so that more tokens do not take more
    rounds. Deviation from the public code: there the step is the same for any number.
    """

    pairs = True
    positional = "tokens at even places are compared with those at odd ones"
    important: float = option(0.5, "what goes to important tokens", **BUDGET)
    step: int = option(8, "how many duplicates leave in a round, for every 576 tokens of a row", lo=1, unit="tokens")
    encoder_layer: int = encoder_layer_option()

    @property
    def needs(self):
        return (CLSAttention(self.encoder_layer),)

    def score(self, s: Signals) -> Tensor:
        return score.attention(s, self.needs[0])

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        diverse = budget.fraction_of(keep, 1 - self.important)
        important = select.top(self.score(s), keep - diverse, s.valid)
        rest = s.valid & ~important
        place, filled = select.ranked(self.score(s), rest.sum(1), rest)
        step = self.step * (s.valid.sum(1) // 576).clamp(min=1)
        stay = match.distinct(select.take(s.features, place), filled, diverse, step)
        return Reduction.keep(important | torch.zeros_like(rest).scatter_(1, place, stay))
