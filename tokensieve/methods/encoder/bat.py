from dataclasses import dataclass

import torch
from torch import Tensor

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import CLSAttention, Keys
from tokensieve.core.options import option
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.methods.recurring import BUDGET, SHARE
from tokensieve.parts import budget, merge, score, select
from tokensieve.parts.merge import match
from tokensieve.parts.select import distance


@register_method("bat", systems=[84])
@dataclass(frozen=True)
class BAT(Method):
    """Splits tokens by class attention: alike attentive ones are matched, and inattentive ones become clusters.

    Source: arXiv 2211.11315 (Beyond Attentive Tokens). ``clusters`` of the budget are cluster centres among the inattentive
    tokens, by density peaks, which the others of them join; of the attentive ones a ``matched`` share more than the budget has
    room for is split off, and bipartite matching merges the most alike. Merged tokens are means by class attention. Deviations:
    alike means the cosine of keys (features, where there are none); both are shares, where the code names numbers for a model.
    """

    site = "encoder"
    sites = ("encoder",)
    pairs = True
    unranked = "clusters of inattentive tokens stay"
    positional = "of alike tokens those at even places leave"
    clusters: float = option(0.2, "what goes to clusters of inattentive tokens", **BUDGET)
    matched: float = option(0.2, "how many more attentive tokens are split off than stay, of those", **SHARE)

    @property
    def needs(self):
        return (CLSAttention(), Keys())

    def score(self, s: Signals) -> Tensor:
        return score.attention(s, self.needs[0])

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        importance, spare = self.score(s), budget.fraction_of(keep, self.clusters)
        stay = keep - spare
        more = (stay.double() * self.matched).round().long().minimum(s.valid.sum(1) - keep).minimum(stay)
        attentive = select.top(importance, stay + more, s.valid)
        chosen, target = match.bipartite(match.metric(s, self.needs[1]), stay, attentive, s.weight)
        rest = s.valid & ~attentive
        centres = distance.density_peaks(s.features, spare, rest)
        joined, _ = merge.nearest(s.features, centres, euclidean=True)
        return Reduction.merge(
            chosen | centres, torch.where(rest, joined, target), importance.clamp(min=1e-12) * s.weight
        )
