from dataclasses import dataclass

from torch import Tensor

from tokensieve.method import Method
from tokensieve.needs import WindowAttention
from tokensieve.parts import score
from tokensieve.registry import register
from tokensieve.signals import Signals


@register("tova")
@dataclass(frozen=True)
class TOVA(Method):
    """Keeps the tokens to which the last one attends most, averaged over all heads of the layer.

    Source: arXiv 2401.06104. Meant for eviction at every decoded token (``every=1``) as well as behind the prompt. Deviation: the
    last token itself always stays, as in other collections of methods; the paper's code would let it go if it attended
    little to itself.
    """

    site = "cache"
    sites = ("cache",)
    unit = "token"

    @property
    def needs(self):
        return (WindowAttention(1),)

    @property
    def protected(self) -> int:
        return 1

    def score(self, s: Signals) -> Tensor:
        return s.get(self.needs[0])[1].flatten(1, -2).mean(1)

    def safe(self, s: Signals, keep: Tensor) -> Tensor:
        return score.recent(s, 1)
