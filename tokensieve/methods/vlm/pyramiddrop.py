from dataclasses import dataclass

from torch import Tensor

from tokensieve.method import Method
from tokensieve.methods.recurring import at_option
from tokensieve.needs import LastAttention
from tokensieve.parts import budget, score, select
from tokensieve.plan import Stage, descent
from tokensieve.reduction import Reduction
from tokensieve.registry import register
from tokensieve.signals import Signals


@register("pyramiddrop")
@dataclass(frozen=True)
class PyramidDrop(Method):
    """Drops visual tokens at several language-model layers, the same share each time, by the last prompt token's attention.

    Source: arXiv 2410.17247. ``at`` are the layers, as shares of the depth (the paper's 8, 16 and 24 of 32). The paper's
    lambda, the share that each stage keeps (0.5), follows from the mean over all layers that is asked for. Every token is
    there up to the first stage, so the mean is at least ``at[0]`` of the tokens. Deviations from the public code: none in
    the selection; lambda is solved for.
    """

    site = "prefill"
    sites = ("prefill",)
    at: tuple[float, ...] = at_option((0.25, 0.5, 0.75))

    @property
    def needs(self):
        return (LastAttention,)

    def score(self, s: Signals) -> Tensor:
        return score.last_row(*score.text_rows(s, LastAttention))

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        return Reduction.keep(select.top(self.score(s), keep, s.valid))

    def stages(self, keep: budget.Budget) -> list[Stage]:
        return descent(self, keep, self.at)
