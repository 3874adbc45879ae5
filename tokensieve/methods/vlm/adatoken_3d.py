from dataclasses import dataclass

from torch import Tensor

from tokensieve.method import Method
from tokensieve.needs import TextAttention
from tokensieve.parts import score, select
from tokensieve.reduction import Reduction
from tokensieve.registry import register
from tokensieve.signals import Signals


@register("adatoken-3d", systems=[64])
@dataclass(frozen=True)
class AdaToken3D(Method):
    """Keeps the visual or spatial tokens from which most information flows to the text: attention over heads and text tokens.

    Source: arXiv 2505.12782. The paper measures this flow at every layer of a 3D model and derives from it how many tokens
    each layer needs: `tokensieve.search.stages.adatoken3d` does so for any model and returns the plan. Alone, this method is
    that plan's single stage, at layer 2. Deviations: the flow is attention as it is, without the paper's comparison of
    streams; position-tagged tokens and plain visual ones compete for one budget.
    """

    site = "prefill"
    sites = ("prefill",)
    layer = 2

    @property
    def needs(self):
        return (TextAttention,)

    def score(self, s: Signals) -> Tensor:
        return score.mean_row(*score.text_rows(s, TextAttention))

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        return Reduction.keep(select.top(self.score(s), keep, s.valid))
