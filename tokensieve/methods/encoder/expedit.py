from dataclasses import dataclass

from torch import Tensor

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.options import option
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.parts.merge import local


@register_method("expedit", systems=[22])
@dataclass(frozen=True)
class Expedit(Method):
    """Clusters neighbouring tokens once in the midst of an encoder, and gives every token back a mix of the clusters like it.

    Source: arXiv 2210.01035. K-means from near-equal cells of the grid, over the clusters around each token; behind the encoder a
    token is restored from its ``slots`` nearest clusters by a softmax of minus their squared distances as they were where it was
    clustered, which dense heads need. Deviations: a token belongs to one cluster, where the paper shares it out; a cluster stands
    at the middle of its cell, whose token it keeps; the temperature is relative to the mean squared distance of tokens to their
    nearest cluster, where the paper's is an absolute number for each backbone.
    """

    site = "encoder"
    schedule = "once"
    begins = 0.4
    sites = ("encoder",)
    positional = "clusters stand at the middles of cells"
    steps: int = option(5, "the largest number of rounds of k-means", lo=1, unit="rounds")
    slots: int = option(20, "from how many clusters a token is restored", lo=1, unit="clusters")
    temperature: float = option(
        1.0, "of that mix, over the mean squared distance of a token to its nearest cluster", above=0
    )

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        x = s.features.detach()
        chosen, target = local.means(x, keep, s.valid, s.grid, self.steps, s.weight)
        made = Reduction.merge(chosen, target, s.weight)
        return made.expanding(*local.back(x, made.apply(x), made.mask, s.valid, self.slots, self.temperature))
