from dataclasses import dataclass

from torch import Tensor

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import Keys
from tokensieve.core.options import option
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.parts.merge import cluster, match


@register_method("atc", systems=[345])
@dataclass(frozen=True)
class ATC(Method):
    """Bottom-up hierarchical clustering of the tokens to exactly the budget; each cluster becomes its average.

    Source: arXiv 2409.11923. Distance is one minus the cosine of keys, averaged over heads where the heads are
    given apart (sites give them side by side); ``linkage`` is "average", the default of the public code, "single",
    "complete" or "ward". Averages are weighted by size where tokens were merged before. A cluster takes the place of its member
    nearest to its mean. Deviations from the public code: beyond 4,096 tokens contiguous pieces of at most that many are
    clustered first and then the clusters' means (the code holds all N x N distances); ties cannot miss the budget;
    proportional attention, an option there, is off.
    """

    site = "encoder"
    sites = ("encoder", "handoff", "prefill")
    pairs = True
    positional = "each cluster of identical tokens stands at its own first one"
    linkage: str = option(
        "average", "how the distance of two clusters follows from those of their members", choices=cluster.LINKAGES
    )

    @property
    def needs(self):
        return (Keys(),)

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        chosen, target = cluster.agglomerative(match.metric(s, self.needs[0]), keep, s.valid, self.linkage)
        return Reduction.merge(chosen, target, s.weight)
