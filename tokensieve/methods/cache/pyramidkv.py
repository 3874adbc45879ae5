from dataclasses import dataclass

from torch import Tensor

from tokensieve.core.options import option
from tokensieve.methods.cache.snapkv import SnapKV
from tokensieve.parts import budget
from tokensieve.registry import register


@register("pyramidkv")
@dataclass(frozen=True)
class PyramidKV(SnapKV):
    """SnapKV's choice with budgets that fall linearly from the first layer to the last.

    Source: arXiv 2406.02069. Beyond the ``window``, the last layer keeps 1/``beta`` of the mean and the first as much more.
    ``window``, ``kernel`` and ``pooling`` are those of `snapkv`. Deviation from the public code: layers sum to the budget
    exactly, where its rounding leaves some of it unspent.
    """

    beta: float = option(20.0, "how many times less than the mean the last layer keeps beyond the window", lo=1)

    def of_layer(self, keep: Tensor, seen: Tensor, layer: int, depth: int) -> Tensor:
        return budget.pyramid(keep, seen, self.window, depth, self.beta)[:, layer]
