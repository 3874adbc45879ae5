from dataclasses import dataclass

from torch import Tensor

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.parts import select


@register_method("pool")
@dataclass(frozen=True)
class Pool(Method):
    """Averages near-equal cells of the grid into the places of their centres: pooling to any number of tokens.

    The cells are those of `uniform`; 24 x 24 tokens to 64 is 3 x 3 average pooling.
    """

    sites = ("handoff", "prefill", "encoder", "vectors", "diffusion")
    inert = {"features": "cells of the grid are averaged, whatever they hold"}
    positional = "cells of the grid are averaged, whatever they hold"

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        return Reduction.merge(*select.cells(keep, s.valid, s.grid))
