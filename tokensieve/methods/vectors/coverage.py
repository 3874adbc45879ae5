from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import normalize

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.parts.numeric import similarity
from tokensieve.parts.select import coverage

STEPS = 1024
"""Cosines count in whole steps: of two vectors nearest to each other both gain the same, and rounding would choose."""


@register_method("coverage")
@dataclass(frozen=True)
class Coverage(Method):
    """Keeps vectors so that every vector of the document resembles one of them: greedily, the largest sum of best cosines.

    With the document's own vectors for a query, that sum is the MaxSim score of what is kept. Source: the visual half of
    arXiv 2508.18264 without its temperature; deviation: cosines are rounded to 1/1024.
    """

    site = "vectors"
    sites = ("vectors",)
    pairs = True

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        unit = normalize(s.features, dim=-1) * s.valid[..., None]
        like = similarity.dots(unit)
        return Reduction.keep(coverage.cover(lambda place: (like(place) * STEPS).round(), keep, s.valid))
