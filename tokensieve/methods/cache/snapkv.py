from dataclasses import dataclass

from torch import Tensor

from tokensieve.core.method import CacheMethod
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import WindowAttention
from tokensieve.core.options import option
from tokensieve.core.signals import Signals
from tokensieve.parts import score


@register_method("snapkv")
@dataclass(frozen=True)
class SnapKV(CacheMethod):
    """Keeps the last tokens of the prompt and, for each head, the earlier ones to which they attend most.

    Source: arXiv 2404.14469. ``window`` last tokens vote with their attention, averaged over them and over the query heads that
    share a key-value head; votes are pooled ("mean" or "max") over ``kernel`` neighbours, so that what stands around a
    detail stays with it. Defaults are those of the public code. Deviation: none in the selection.
    """

    small = {"window": 4, "kernel": 3}
    positional = "the last tokens stay, and votes are pooled over neighbours"
    window: int = option(32, "the last tokens, which vote with their attention and stay", lo=1, unit="tokens")
    kernel: int = option(5, "over how many neighbouring entries votes are pooled", lo=1, odd=True, unit="tokens")
    pooling: str = option("mean", "how the votes of neighbours are pooled", choices=("mean", "max"))

    @property
    def needs(self):
        return (WindowAttention(self.window),)

    @property
    def min_kept(self) -> int:
        return self.window

    def score(self, s: Signals) -> Tensor:
        return score.observed(s, self.needs[0], self.kernel, self.pooling)

    def always_keep(self, s: Signals, keep: Tensor) -> Tensor:
        return score.recent(s, keep.clamp(max=self.window))
