from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tokensieve.core.method import PromptMethod
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import Passages
from tokensieve.core.options import option
from tokensieve.core.signals import Signals
from tokensieve.core.topk import ranks
from tokensieve.parts.merge import cluster
from tokensieve.parts.select import marginal

ROUNDS = 20
"""Of k-means, at most."""
REPEATING = 0.7
"""How much being near to the cluster's mean counts in its digest, against repetition."""


@register_method("crag", systems=[104])
@dataclass(frozen=True)
class CRAG(PromptMethod):
    """Passages that say alike are clustered, and of each cluster only a digest of a few sentences enters.

    Passages are clustered by k-means of their mean vectors; a digest is made of the cluster's sentences nearest to its mean
    direction that do not repeat each other. Digests take turns, larger clusters first, and nothing but digests enters: what is
    kept is sized by the number of clusters, not by that of passages. Source: Clustered Retrieved Augmented Generation (arXiv
    2406.00029). Deviations: the digest is taken from the text, where the paper has a language model write it, and the number of
    clusters is an option.
    """

    adaptive = True
    needs = (Passages,)
    small = {"digest": 5}
    unranked = "each cluster has its turn"
    positional = "each cluster has a digest of its own"
    clusters: int = option(4, "the number of clusters, as far as there are as many passages", lo=1)
    digest: int = option(3, "units in the digest of each cluster", lo=1, unit="units")

    def order(self, s: Signals, most: Tensor) -> Tensor:
        return torch.cat([self._order(s.row(b)) for b in range(s.batch)])

    def _order(self, s: Signals) -> Tensor:
        """Of one row."""
        unit, passage = normalize(s.features, dim=-1), s.get(Passages)[1].long()
        inside = s.valid & (passage >= 0)
        number = torch.where(inside, passage, passage.amax() + 1)
        held, number = number.unique(return_inverse=True)
        total = unit.new_zeros(1, len(held), unit.shape[2]).index_add_(1, number[0], unit * inside[..., None])
        there = torch.zeros(1, len(held), dtype=torch.bool, device=s.device).index_fill_(1, number[inside], True)
        count = torch.tensor([self.clusters], device=s.device).minimum(there.sum(1))
        _, label = cluster.means(normalize(total, dim=-1), count, there, ROUNDS)
        group = torch.where(inside, label.gather(1, number), -1)
        place, size = torch.full_like(group, -1), torch.zeros_like(group)
        for one in group[inside].unique():
            own = group == one
            centre = normalize((unit * own[..., None]).sum(1, keepdim=True), dim=-1)
            near = (unit @ centre.transpose(1, 2))[..., 0]
            picked = marginal.marginal(unit, near, torch.tensor([self.digest], device=s.device), own, REPEATING)
            place, size = torch.where(own, picked, place), torch.where(own, own.sum(), size)
        chosen = place >= 0
        return ranks(-place.double() * (s.n + 1) + size, chosen)
