from dataclasses import dataclass

from torch import Tensor

from tokensieve.core.method import CacheMethod
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import WindowAttention
from tokensieve.core.options import option
from tokensieve.core.signals import Signals
from tokensieve.methods.recurring import DEPTH
from tokensieve.parts import score


@register_method("tidaldecode", systems=[24])
@dataclass(frozen=True)
class TidalDecode(CacheMethod):
    """Reads a few entries of a whole cache: two layers select those of most attention, the layers behind them read the same.

    Source: arXiv 2410.05076. At every decoded token the first ``dense`` layers and the two that select read all entries; the
    next one behind the dense ones selects, and the layer at the share ``again`` of the depth selects anew. All others read the
    ``keep`` entries of highest attention, head by head, and the token itself. Nothing leaves the cache, so time is saved and
    no memory. Defaults are those of the public code for 32 layers (2 dense, selection at 2 and 13). Deviation: query heads
    that share a key-value head select together, by their mean attention; entries of the cache are never refreshed.
    """

    sparse_decode = True
    positional = "the last token is read"
    dense: int = option(2, "how many first layers read all entries", lo=0, unit="layers")
    again: float = option(13 / 32, "where entries are selected anew", **DEPTH)

    @property
    def needs(self):
        return (WindowAttention(1),)

    def score(self, s: Signals) -> Tensor:
        return score.per_token(s.get(self.needs[0])[1])

    def always_keep(self, s: Signals, keep: Tensor) -> Tensor:
        return score.recent(s, 1)

    def layer_roles(self, depth: int) -> list[str]:
        chosen = {self.dense, max(self.dense, int(self.again * depth))}
        return ["dense" if i < self.dense else "select" if i in chosen else "read" for i in range(depth)]
