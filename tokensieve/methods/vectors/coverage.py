from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import normalize

from tokensieve.method import Method
from tokensieve.parts import coverage, likeness
from tokensieve.reduction import Reduction
from tokensieve.registry import register
from tokensieve.signals import Signals


@register("coverage")
@dataclass(frozen=True)
class Coverage(Method):
    """Keeps vectors so that every vector of the document resembles one of them: greedily, the largest sum of best cosines.

    With the document's own vectors for a query, that sum is the MaxSim score of what is kept. Source: the visual half of
    arXiv 2508.18264 without its temperature; deviations: none from this definition.
    """

    site = "vectors"
    sites = ("vectors",)
    pairs = True

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        unit = normalize(s.features, dim=-1) * s.valid[..., None]
        return Reduction.keep(coverage.cover(likeness.dots(unit), keep, s.valid))
