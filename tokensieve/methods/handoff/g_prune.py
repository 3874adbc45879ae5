from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import Need
from tokensieve.core.options import option
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.methods.recurring import COSINE
from tokensieve.parts import budget, select
from tokensieve.parts.score import graph


@register_method("g-prune", systems=[339])
@dataclass(frozen=True)
class GPrune(Method):
    """Keeps the tokens to which most importance flows in a graph of similar tokens, be they foreground or background.

    Source: arXiv 2501.02268. Tokens with a cosine of at least ``cosine_threshold`` are linked, each token's links weighted by
    a softmax at ``temperature``. Importance starts as the norm, flows along the links ``steps`` times, and is divided by
    the number of links, so that large uniform regions do not win by their size. Where an image comes with a thumbnail
    (``crop``), thumbnail and crops are graphs of their own and share the budget by size. Defaults are the public code's.
    Deviations from it: links are counted by similarity, not by weights that did not round to zero; line ends count as
    tokens of the crops.
    """

    pairs = True
    small = {"cosine_threshold": 0.2, "temperature": 0.2}
    favours = ("long",)
    cosine_threshold: float = option(
        0.5, "from which cosine similarity on two tokens are linked", was="similarity", **COSINE
    )
    temperature: float = option(0.03, "of the softmax over a token's links", above=0, unit="cosine")
    steps: int = option(5, "how often importance flows along the links", lo=0, unit="rounds")

    @property
    def needs(self):
        return (Need("crop", instead=("features",)),)

    def score(self, s: Signals) -> Tensor:
        x = s.features.detach()
        unit, importance = normalize(x, dim=-1), x.norm(dim=-1) * s.valid
        flow, degree = graph.similar(unit, s.valid, self._group(s), self.cosine_threshold, self.temperature)
        for _ in range(self.steps):
            importance = flow(importance)
        return importance / degree

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        group = self._group(s)
        held = select.group_sizes(group, s.valid, 2)
        return Reduction.keep(select.top_of_each(self.score(s), budget.allot(keep, held, held), group, s.valid))

    def _group(self, s: Signals) -> Tensor:
        return torch.zeros_like(s.valid, dtype=torch.long) if s.crop is None else (s.crop != 0).long()
