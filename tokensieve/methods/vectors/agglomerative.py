from dataclasses import dataclass

from torch import Tensor

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.options import option
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.parts import merge
from tokensieve.parts.merge import cluster


@register_method("agglomerative")
@dataclass(frozen=True)
class Agglomerative(Method):
    """Bottom-up clustering of a document's vectors by cosine; each cluster becomes its mean at the length of its vectors.

    Source: arXiv 2409.14683. ``linkage`` is "ward", as in the paper, "average", "complete" or "single". Deviations from
    public code: Ward's rule is given the Euclidean distances of unit vectors, which it is one of (PyLate gives it one
    minus the cosine), and distances are given as distances (one library hands over the square matrix, whose rows are
    then read as points); means of unit vectors are made unit vectors again (others leave them short, which ranks mixed
    clusters down), the number of clusters is exact, and no vector is set apart.
    """

    site = "vectors"
    sites = ("vectors",)
    pairs = True
    positional = "each cluster of identical tokens stands at its own first one"
    linkage: str = option(
        "ward", "how the distance of two clusters follows from those of their members", choices=cluster.LINKAGES
    )

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        chosen, target = cluster.agglomerative(s.features, keep, s.valid, self.linkage)
        return Reduction.weighted(chosen, target, merge.levelled(s.features, chosen, target, s.weight))
