from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import normalize

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import CLSAttention
from tokensieve.core.options import option
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.methods.recurring import BUDGET, encoder_layer_option
from tokensieve.parts import budget, score, select
from tokensieve.parts.merge import cluster

ROUNDS = 10


@register_method("vmtc", systems=[55])
@dataclass(frozen=True)
class VMTC(Method):
    """Keeps the primary visual tokens by CLS attention, and k-means clusters of the redundant rest, merged by importance.

    Source: arXiv 2411.15453 (Visual-Modality Token Compression). ``primary`` is the share of the budget that goes to primary
    tokens; the rest of it is the number of clusters. Redundant tokens are clustered by cosine similarity and averaged within
    their cluster by CLS attention. Deviations: clusters start evenly spaced, and one that runs empty takes the token farthest
    from its centre, so that the budget is exact; half and half is this project's split. The paper's other half, which
    suppresses text-to-image attention of low focus, is ``cmai``.
    """

    pairs = True
    primary: float = option(0.5, "what goes to primary tokens", **BUDGET)
    encoder_layer: int = encoder_layer_option()

    @property
    def needs(self):
        return (CLSAttention(self.encoder_layer),)

    def score(self, s: Signals) -> Tensor:
        return score.attention(s, self.needs[0])

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        importance, spare = self.score(s), budget.fraction_of(keep, 1 - self.primary)
        primary = select.top(importance, keep - spare, s.valid)
        rest = s.valid & ~primary
        centres, target = cluster.means(normalize(s.features, dim=-1), spare, rest, ROUNDS)
        return Reduction.merge(primary | centres, target, importance.clamp(min=1e-12) * s.weight)
