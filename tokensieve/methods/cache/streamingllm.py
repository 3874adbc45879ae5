from dataclasses import dataclass

from torch import Tensor

from tokensieve.core.method import CacheMethod
from tokensieve.core.method_registry import register_method
from tokensieve.core.options import option
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.parts import select


@register_method("streamingllm")
@dataclass(frozen=True)
class StreamingLLM(CacheMethod):
    """Keeps the first tokens, on which attention rests, and the most recent ones.

    Source: arXiv 2309.17453. ``sinks`` is the number of first tokens (of the row: padding is no token). Deviation: entries keep
    the rotary positions they were computed with, where the paper numbers them anew by their place in the cache.
    """

    unit = "token"
    inert = {"features": "entries stay by their place alone"}
    positional = "the first and the most recent tokens stay"
    sinks: int = option(4, "the first tokens, which always stay", lo=0, unit="tokens")

    @property
    def min_kept(self) -> int:
        return self.sinks + 1

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        sinks = select.first((keep - 1).clamp(max=self.sinks), s.valid)
        return Reduction.keep(sinks | select.last(keep - sinks.sum(1), s.valid))
