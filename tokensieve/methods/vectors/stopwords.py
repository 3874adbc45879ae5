from dataclasses import dataclass

import torch
from torch import Tensor

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import StopWords
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.parts import select


@register_method("stopwords", systems=[364])
@dataclass(frozen=True)
class StopWordsFirst(Method):
    """Lets stop words and punctuation go first, the last of them before the others, and then the end of the text.

    Source: arXiv 2112.06540. Deviation: the budget is exact; the paper removes stop words whatever their number.
    """

    site = "vectors"
    sites = ("vectors",)
    needs = (StopWords,)

    def score(self, s: Signals) -> Tensor:
        place = s.valid.to(s.features.dtype).cumsum(1)
        return torch.where(s.get(StopWords)[1] > 0, -place - place[:, -1:], -place)

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        return Reduction.keep(select.top(self.score(s), keep, s.valid))
