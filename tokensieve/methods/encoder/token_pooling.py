from dataclasses import dataclass

from torch import Tensor

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import Need
from tokensieve.core.options import option
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.parts import score
from tokensieve.parts.merge import cluster


@register_method("token-pooling", systems=[275])
@dataclass(frozen=True)
class TokenPooling(Method):
    """Weighted K-means of the tokens: the set of fewer tokens that stands nearest to all, those that are looked at counting most.

    Source: arXiv 2110.03860. Clusters are of features, by Euclidean distance; a token counts as much as the attention that it
    receives from all (that of the class token, or one each, where that is not known), and a cluster becomes its members' mean by
    those weights. ``steps`` is the largest number of rounds. Deviations: the first centres stand at equal steps among the tokens,
    where the paper takes the most significant ones; a cluster takes the place of its member nearest to its centre.
    """

    site = "encoder"
    sites = ("encoder", "handoff")
    pairs = True
    steps: int = option(5, "the largest number of rounds", lo=1, unit="rounds")

    @property
    def needs(self):
        return (Need("received_attention", (), ("cls_attention", "features")),)

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        name, value = s.get(self.needs[0])
        counts = s.weight if name == "features" else s.weight * score.per_token(value).clamp(min=1e-6)
        chosen, target = cluster.means(s.features, keep, s.valid, self.steps, counts)
        return Reduction.merge(chosen, target, counts)
