from dataclasses import dataclass

from torch import Tensor

from tokensieve.core.method import CacheMethod
from tokensieve.core.method_registry import register_method
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.parts import select


@register_method("uniform")
@dataclass(frozen=True)
class Uniform(CacheMethod):
    """Keeps the centres of near-equal cells of the grid: a sampling that looks at nothing but positions.

    Exactly the budget for any number of tokens. Where there is no grid, or a row holds padding, tokens are taken at
    equal steps along the row.
    """

    site = "handoff"
    sites = ("handoff", "prefill", "encoder", "cache", "vectors", "diffusion")
    inert = {"features": "tokens lie evenly over the picture, whatever they hold"}
    positional = "tokens lie evenly over the picture"

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        centres, _ = select.cells(keep, s.valid, s.grid)
        return Reduction.keep(centres)
