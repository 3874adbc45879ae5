from dataclasses import dataclass

from torch import Tensor

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.parts.select import distance


@register_method("divprune", systems=[67])
@dataclass(frozen=True)
class DivPrune(Method):
    """Keeps a diverse subset: greedily, the token whose smallest cosine distance to those already kept is largest.

    Source: arXiv 2503.02175. It starts with the token whose nearest other token is farthest. Deviations from the public
    code: none in the selection; distances are computed when they are needed instead of as an N x N matrix, and kept
    tokens stay in order.
    """

    sites = ("handoff", "prefill", "encoder", "vectors", "diffusion")
    pairs = True

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        return Reduction.keep(distance.farthest(s.features, keep, s.valid))
