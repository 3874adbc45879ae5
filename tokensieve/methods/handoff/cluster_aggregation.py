from dataclasses import dataclass

from torch import Tensor

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.options import option
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.parts.merge import cluster


@register_method("cluster-aggregation", systems=[391])
@dataclass(frozen=True)
class ClusterAggregation(Method):
    """Clusters the visual tokens by k-means and replaces each cluster by its mean.

    Source: arXiv 2504.17892. No attention is read; the clusters are those of the features, by Euclidean distance, in at
    most ``steps`` rounds. Deviations from the paper, which has no public code: the first centres lie at equal steps along
    the row instead of at random, no cluster is empty, and a mean stands where its cluster's most central token stood.
    """

    sites = ("handoff", "prefill", "encoder")
    pairs = True
    steps: int = option(10, "the largest number of rounds", lo=1, unit="rounds")

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        return Reduction.merge(*cluster.means(s.features, keep, s.valid, self.steps))
