from dataclasses import dataclass

from torch import Tensor

from tokensieve.core.method import PromptMethod
from tokensieve.core.method_registry import register_method
from tokensieve.core.signals import Signals


@register_method("random-text")
@dataclass(frozen=True)
class RandomText(PromptMethod):
    """Units drawn at random: what every other method of prompts has to beat.

    Source: a baseline, of no paper (compare arXiv 2310.05736, which it is measured beside).
    """

    vectors = False
    inert = PromptMethod.inert
    unranked = "units are drawn"
    positional = "units are drawn"

    def score(self, s: Signals) -> Tensor:
        return s.noise()
