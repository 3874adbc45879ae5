from dataclasses import dataclass

from torch import Tensor

from tokensieve.core.method_registry import register_method
from tokensieve.core.options import option
from tokensieve.methods.cache.snapkv import SnapKV
from tokensieve.parts import budget


@register_method("pyramidkv")
@dataclass(frozen=True)
class PyramidKV(SnapKV):
    """SnapKV's choice with budgets that fall linearly from the first layer to the last.

    Source: arXiv 2406.02069. Beyond the ``window``, the last layer keeps 1/``beta`` of the mean and the first as much more.
    ``window``, ``kernel`` and ``pooling`` are those of `snapkv`. Deviations from the public code: layers sum to the budget
    exactly, where its budgets fall in whole steps, rounded down, and so overspend (55.0 entries a layer for 48, of 32 layers
    and a window of 8); and short prompts have their pyramid too, where that code gives all layers the same.
    """

    beta: float = option(20.0, "how many times less than the mean the last layer keeps beyond the window", lo=1)

    def of_layer(self, keep: Tensor, seen: Tensor, layer: int, depth: int) -> Tensor:
        return budget.pyramid(keep, seen, self.window, depth, self.beta)[:, layer]
