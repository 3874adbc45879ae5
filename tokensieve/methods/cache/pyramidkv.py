from dataclasses import dataclass

from torch import Tensor

from tokensieve.method import Method
from tokensieve.needs import WindowAttention
from tokensieve.parts import budget, score
from tokensieve.registry import register
from tokensieve.signals import Signals


@register("pyramidkv")
@dataclass(frozen=True)
class PyramidKV(Method):
    """SnapKV's choice with budgets that fall linearly from the first layer to the last.

    Source: arXiv 2406.02069. Beyond the ``window``, the last layer keeps 1/``beta`` of the mean and the first as much more.
    ``window``, ``kernel`` and ``pooling`` are those of `snapkv`. Deviation from the public code: layers sum to the budget
    exactly, where its rounding leaves some of it unspent.
    """

    site = "cache"
    sites = ("cache",)
    window: int = 32
    kernel: int = 5
    pooling: str = "mean"
    beta: float = 20.0

    @property
    def needs(self):
        return (WindowAttention(self.window),)

    @property
    def protected(self) -> int:
        return self.window

    def of_layer(self, keep: Tensor, seen: Tensor, layer: int, depth: int) -> Tensor:
        return budget.pyramid(keep, seen, self.window, depth, self.beta)[:, layer]

    def score(self, s: Signals) -> Tensor:
        return score.observed(s, self.needs[0], self.kernel, self.pooling)

    def safe(self, s: Signals, keep: Tensor) -> Tensor:
        return score.recent(s, keep.clamp(max=self.window))
