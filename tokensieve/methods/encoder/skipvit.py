from dataclasses import dataclass

from torch import Tensor

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import CLSAttention
from tokensieve.core.signals import Signals
from tokensieve.parts import score


@register_method("skipvit", systems=[301])
@dataclass(frozen=True)
class SkipViT(Method):
    """Sends the tokens that the class token looks at least past the middle blocks, and has them back for the last ones.

    Source: arXiv 2401.15293. They leave once, by class attention, and stand in their places again, in the state in which they
    left, in front of a later block; no parameter is added, and a model is trained under the sieve as it is run. Deviations:
    blocks are shares of the depth, a third and five sixths by default (``layers`` and ``back`` name others).
    """

    site = "encoder"
    sites = ("encoder",)
    schedule = "once"
    begins = 1 / 3
    returns = 5 / 6

    @property
    def needs(self):
        return (CLSAttention(),)

    def score(self, s: Signals) -> Tensor:
        return score.attention(s, self.needs[0])
