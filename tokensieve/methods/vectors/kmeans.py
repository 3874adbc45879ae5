from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import normalize

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.options import option
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.parts import merge
from tokensieve.parts.merge import cluster


@register_method("kmeans", systems=[130])
@dataclass(frozen=True)
class KMeans(Method):
    """K-means of a document's vectors; each cluster becomes its mean, brought back to the length of its vectors.

    Source: arXiv 2505.11471, the clustering of frozen vectors that it starts from. Clusters are of directions; ``steps`` is
    the largest number of rounds. Deviations: the first centres stand at equal steps along the text instead of being drawn,
    so that results repeat; a mean of unit vectors is made a unit vector again.
    """

    site = "vectors"
    sites = ("vectors",)
    steps: int = option(20, "the largest number of rounds", lo=1, unit="rounds")

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        chosen, target = cluster.means(normalize(s.features, dim=-1), keep, s.valid, self.steps)
        return Reduction.weighted(chosen, target, merge.levelled(s.features, chosen, target, s.weight))
