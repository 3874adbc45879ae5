from dataclasses import dataclass

from torch import Tensor

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import OwnLastAttention
from tokensieve.core.plan import descent, register_plan
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.core.stage import Stage
from tokensieve.methods.recurring import at_option
from tokensieve.parts import budget, score, select


@register_method("pyramiddrop")
@dataclass(frozen=True)
class PyramidDrop(Method):
    """Drops visual tokens at several language-model layers, the same share each time, by the last prompt token's attention.

    Source: arXiv 2410.17247. ``at`` are the layers, as shares of the depth (the paper's 8, 16 and 24 of 32). The paper's
    lambda, the share that each stage keeps (0.5), follows from the mean over all layers that is asked for. Every token is
    there up to the first stage, so the mean is at least ``at[0]`` of the tokens. Attention is that of the layer in front of
    which tokens leave, from the queries and keys that it makes of all that are there, as in the public code. Deviations
    from that code: lambda is solved for, and counts meet the mean where it rounds them down; survivors keep their position
    ids (it numbers them anew at every stage: ``positions="compact"``).
    """

    site = "prefill"
    sites = ("prefill",)
    at: tuple[float, ...] = at_option((0.25, 0.5, 0.75))

    @property
    def needs(self):
        return (OwnLastAttention,)

    def score(self, s: Signals) -> Tensor:
        return score.last_row(*score.text_rows(s, OwnLastAttention))

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        return Reduction.keep(select.top(self.score(s), keep, s.valid))


@register_plan("pyramiddrop")
def pyramiddrop(method: PyramidDrop, keep: budget.Budget) -> list[Stage]:
    """The method at each of its layers, the same share of what is there leaving every time."""
    return descent(method, keep, method.at)
