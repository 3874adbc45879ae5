from dataclasses import dataclass

from torch import Tensor

from tokensieve.method import Method
from tokensieve.parts import select
from tokensieve.reduction import Reduction
from tokensieve.registry import register
from tokensieve.signals import Signals


@register("pool")
@dataclass(frozen=True)
class Pool(Method):
    """Averages near-equal cells of the grid into the places of their centres: pooling to any number of tokens.

    The cells are those of `uniform`; 24 x 24 tokens to 64 is 3 x 3 average pooling.
    """

    sites = ("handoff", "prefill", "encoder", "vectors")
    inert = {"features": "cells of the grid are averaged, whatever they hold"}
    positional = "cells of the grid are averaged, whatever they hold"

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        return Reduction.merge(*select.cells(keep, s.valid, s.grid))
