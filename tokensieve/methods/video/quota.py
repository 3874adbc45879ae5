from dataclasses import dataclass

import torch
from torch import Tensor

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import CLSAttention, Relevance
from tokensieve.core.options import option
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.parts import budget, score, select
from tokensieve.parts.merge import match
from tokensieve.parts.score import temporal

WITHIN = ("pool", "merge", "uniform", "attention")


@register_method("quota", systems=[370])
@dataclass(frozen=True)
class QuoTA(Method):
    """Gives each frame a quota of tokens by its relevance to the query, and meets it inside the frame.

    Source: arXiv 2503.08689. A frame is as relevant as its most relevant token, quotas are proportional to relevance to
    the power ``power`` (the public code's 2; negative relevance counts as none) and sum to the budget exactly.
    ``within`` says how a frame meets its quota: "pool" averages near-equal cells of it, "merge" merges similar tokens,
    "uniform" takes the cells' centres, "attention" those of the highest CLS attention. To follow the paper, ask a
    vision-language model of each frame whether it shows what the query is about, and pass its probability of a yes
    as the relevance of all tokens of the frame; text embeddings stand in. Deviations from the public code: a quota is
    met exactly, where the code rounds it to a rectangle and loses the rest; no bilinear resizing.
    """

    positional = "cells of a frame are averaged"

    within: str = option("pool", "how a frame meets its quota", choices=WITHIN)
    power: float = option(2.0, "the power of relevance to which quotas are proportional", lo=0)
    unranked = "relevance says how many tokens of a frame stay, and not which"

    @property
    def needs(self):
        return (Relevance, CLSAttention()) if self.within == "attention" else (Relevance,)

    def score(self, s: Signals) -> Tensor:
        return score.relevance(s)

    def quotas(self, s: Signals, keep: Tensor, frame: Tensor) -> Tensor:
        """``(B, F)``: tokens of each frame."""
        size = select.group_sizes(frame, s.valid, temporal.number(frame))
        best = torch.zeros_like(size, dtype=s.features.dtype)
        best.scatter_reduce_(1, frame.clamp(min=0), self.score(s).masked_fill(~s.valid, 0.0), "amax")
        return budget.allot(keep, best**self.power, size)

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        frame = temporal.frames(s)
        quota = self.quotas(s, keep, frame)
        if self.within == "attention":
            return Reduction.keep(select.top_of_each(score.attention(s, self.needs[1]), quota, frame, s.valid))
        place, filled = temporal.table(frame)
        candidates, count = filled.flatten(0, 1), quota.flatten().clamp(min=1)
        candidates = candidates.index_fill(
            1, place.new_zeros(1), True
        )  # a frame that a row lacks counts as one token, unused
        if self.within == "merge":
            weight = temporal.rows(s.weight[..., None], place)[..., 0]
            chosen, target = match.bipartite(temporal.rows(s.features, place), count, candidates, weight)
        else:
            chosen, target = select.cells(count, candidates, temporal.grid(s, filled))
        used = (quota > 0)[..., None]
        source = place.gather(2, target.clamp(min=0).view_as(place))
        source = temporal.back(source.where(used & (target >= 0).view_as(place), -1), place, filled, s.n, -1)
        chosen = temporal.back(chosen.view_as(filled) & used, place, filled, s.n, False)
        return Reduction.keep(chosen) if self.within == "uniform" else Reduction.merge(chosen, source, s.weight)
