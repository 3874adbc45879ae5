from dataclasses import dataclass

from torch import Tensor

from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import Values, WindowAttention
from tokensieve.core.options import option
from tokensieve.core.signals import Signals
from tokensieve.methods.cache.score_wrappers import Over
from tokensieve.parts import score


@register_method("caote", systems=[366])
@dataclass(frozen=True)
class CAOTE(Over):
    """Keeps the entries whose loss would change the attention output most, by the closed form of that change.

    Source: arXiv 2504.14051. Losing entry j changes an output V a by a_j / (1 - a_j) * |V a - v_j|. With ``scorer=""`` a is the
    attention of the last token, for each query head, and the change is exact; over another method it is that one's score as
    shares of its sum (from its least value, where that is negative). ``fast`` takes the mean value in the place of V a. What
    ``scorer`` protects stays protected; without one the last token is. Deviation: entries leave all at once, by the errors of
    losing each alone, where the paper takes them one by one; ``every=1`` does so while decoding.
    """

    inert = {"options": "options of the method that scorer names"}
    positional = "what its scorer protects stays"
    fast: bool = option(False, "whether the mean value stands for the attention output")

    @property
    def needs(self):
        return (*self.inner.needs, Values())

    def score(self, s: Signals) -> Tensor:
        if self.scorer:
            rank = self.inner.score(s)
            assert rank is not None
            rows = rank[:, None]
        else:
            rows = s.get(WindowAttention(1))[1].flatten(1, -2)
        return score.per_token(score.eviction_error(rows, s.metric(Values()), s.valid, self.fast))
