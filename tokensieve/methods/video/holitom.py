from dataclasses import dataclass

import torch
from torch import Tensor

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import CLSAttention
from tokensieve.core.options import option
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.methods.recurring import COSINE
from tokensieve.parts import budget, merge, score, select
from tokensieve.parts.score import temporal

NEIGHBOURS = 7


@register_method("holitom")
@dataclass(frozen=True)
class HoliTom(Method):
    """Averages places that stand still over the windows that save most, then thins what is left by one common ratio.

    Source: arXiv 2505.21334, the part outside the language model. A place stands still from frame to frame above the
    cosine ``cosine_threshold``; dynamic programming covers the clip with the windows whose still places drop most tokens. The
    budget is then shared over still tokens of each window, clustered by density peaks, and moving tokens of each frame,
    kept by attention. Values are the public code's. Deviations from it: the budget is exact, and where still places
    alone would go below it only the most similar tokens join; no random noise on densities, and always 7 neighbours.
    """

    pairs = True
    cosine_threshold: float = option(
        0.8, "above which cosine similarity to the frame before a place stands still", was="likeness", **COSINE
    )

    @property
    def needs(self):
        return (CLSAttention(),)

    def score(self, s: Signals) -> Tensor:
        return score.attention(s, self.needs[0])

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        x, frame = s.features.detach(), temporal.frames(s)
        link = temporal.before(frame)
        like = temporal.linked_cosine(x, link)
        next_to = frame.gather(1, link.clamp(min=0)) == frame - 1
        still, head = temporal.fixtures(frame, (like > self.cosine_threshold) & next_to)
        step = torch.arange(s.n, device=s.device)
        joins = select.top(like, s.valid.sum(1) - keep, still & (head != step))
        target = torch.where(joins, head, step).masked_fill(~s.valid, -1)
        merged = Reduction.merge(s.valid & ~joins, target, s.weight)

        x, candidates = merged.apply(x), merged.mask
        frame, still, rank = (t.gather(1, merged.kept) for t in (frame, still & (head == step), self.score(s)))
        count = temporal.number(frame)
        group = frame + count * still
        size = select.group_sizes(group, candidates, 2 * count)
        quota = budget.allot(keep, size.double(), size)
        chosen = select.top_of_each(rank, quota, group, candidates & ~still)
        peaks = torch.zeros_like(chosen)
        if bool((candidates & still).any()):
            place, filled = temporal.table(torch.where(candidates & still, frame, -1))
            peaks = temporal.peaks(x, quota[:, count : count + place.shape[1]], place, filled, NEIGHBOURS)
        target = merge.nearest_within(x, peaks, group.clamp(min=0), euclidean=True)
        return merged.then(Reduction.merge(chosen | peaks, target.masked_fill(~(candidates & still), -1)))
