from dataclasses import dataclass

from torch import Tensor

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import Need
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.parts import score, select


@register_method("simignore", systems=[322])
@dataclass(frozen=True)
class Simignore(Method):
    """Keeps the visual tokens that stand in the most similar pairs of a visual and a text embedding.

    Source: arXiv 2412.09817. Pairs are sorted by the cosine of the two embeddings and their visual tokens taken until
    the budget is met, so a token ranks by its best pair. Deviations from the public code: tokens leave the sequence
    instead of being hidden by the mask, and all text tokens take part where the code embeds the answer options alone.
    """

    @property
    def needs(self):
        return (Need("text", instead=("relevance",)),)

    def score(self, s: Signals) -> Tensor:
        return score.best_row(*score.similarity(s, self.needs[0]))

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        return Reduction.keep(select.top(self.score(s), keep, s.valid))
