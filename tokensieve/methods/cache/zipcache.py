from dataclasses import dataclass

from torch import Tensor

from tokensieve.core.method import CacheMethod
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import ProbeAttention
from tokensieve.core.options import option
from tokensieve.core.signals import Signals
from tokensieve.parts import score
from tokensieve.parts.numeric.bits import BITS


@register_method("zipcache", systems=[266])
@dataclass(frozen=True)
class ZipCache(CacheMethod):
    """Mixed precision: the salient tokens stay in ``high`` bits, all others in ``low`` bits; none is dropped.

    Source: arXiv 2405.14256. ``keep`` counts the salient tokens. Saliency is the mean attention from those queries that see a
    token, estimated from a ``probes`` share of them: half of it the most recent, half of all ages. Keys are quantized by channel;
    values by token, once channels are divided by the root of their greatest value. Entries decoded since stay as they are until
    the next time (``every=100`` in the paper). Deviations from the public code: the tokens of a layer are salient for all its
    heads (there, for each key-value head its own); attention is summed over probes and divided by the probes that see a token
    (there, by all queries that do); scales belong to a row of the batch, where that code shares them over it; what is packed
    already is packed anew each time; and probes of all ages are spread evenly, where that code draws them.
    """

    unit = "token"
    high: int = option(4, "the precision of salient tokens", choices=BITS, unit="bits")
    low: int = option(2, "the precision of all others, at most that of the salient", choices=BITS, unit="bits")
    probes: float = option(0.1, "the queries from whose attention saliency is estimated", above=0, hi=1, unit="share")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low > self.high:
            raise ValueError(f"zipcache: high={self.high}, low={self.low}; low must be at most high (bits)")

    @property
    def needs(self):
        return (ProbeAttention(self.probes),)

    @property
    def bits(self) -> tuple[int, int]:
        return (self.high, self.low)

    def score(self, s: Signals) -> Tensor:
        return score.attention(s, self.needs[0])
