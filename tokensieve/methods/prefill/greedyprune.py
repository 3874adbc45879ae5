from dataclasses import dataclass

from torch import Tensor

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import Need
from tokensieve.core.options import option
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.methods.recurring import COSINE
from tokensieve.parts import score
from tokensieve.parts.numeric import similarity


@register_method("greedyprune", systems=[303])
@dataclass(frozen=True)
class GreedyPrune(Method):
    """Greedily keeps the token of best saliency plus marginal diversity, which falls with every kept token it resembles.

    Source: arXiv 2506.13166. Saliency is the cosine with the last text token (its attention, where no text is given).
    Tokens resemble each other above a cosine of ``cosine_threshold``; every kept token that a candidate resembles costs it
    ``penalty``. At 2, the span of cosines, no token is kept beside one it resembles while others are left, which is the
    paper's rule; the objective stays defined where the budget asks for more. No public code; ``cosine_threshold`` is a guess,
    and the deviation is the soft penalty in place of a constraint, so that the budget is exact.
    """

    site = "prefill"
    sites = ("prefill", "handoff")
    layer = 2
    pairs = True
    small = {"cosine_threshold": 0.5}
    cosine_threshold: float = option(
        0.9, "above which cosine similarity two tokens resemble each other", was="similarity", **COSINE
    )
    penalty: float = option(2.0, "what every kept token costs a candidate that resembles it", lo=0, unit="saliency")

    @property
    def needs(self):
        return (Need("text", instead=("last_attention", "text_attention", "received_attention")),)

    def score(self, s: Signals) -> Tensor:
        name, _ = s.get(self.needs[0])
        return score.last_row(
            *(score.similarity(s, self.needs[0]) if name == "text" else score.text_rows(s, self.needs[0]))
        )

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        chosen = similarity.unlike(self.score(s), s.features, keep, s.valid, self.cosine_threshold, self.penalty)
        return Reduction.keep(chosen)

    def objective(self, s: Signals, chosen: Tensor) -> Tensor:
        """``(B,)``: the value of a choice, a ``(B, N)`` bool tensor: saliency less penalties, one for every pair."""
        salient = (self.score(s) * chosen).sum(1)
        return salient - self.penalty * similarity.pairs(s.features, chosen, self.cosine_threshold)
