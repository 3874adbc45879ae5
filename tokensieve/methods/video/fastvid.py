from dataclasses import dataclass

import torch
from torch import Tensor

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import CLSAttention
from tokensieve.core.options import option
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.methods.recurring import COSINE, SHARE
from tokensieve.parts import budget, merge, score, select
from tokensieve.parts.score import temporal

NEIGHBOURS = 4


@register_method("fastvid")
@dataclass(frozen=True)
class FastVID(Method):
    """Cuts the clip into segments; in each keeps what is attended to most, and merges the rest around dense tokens.

    Source: arXiv 2503.11187. A clip is cut where neighbouring frames are less alike than ``cosine_threshold``, and into
    ``segments`` at least. The share ``context`` of a segment's budget goes to density peaks in every ``stride``-th of
    its frames, counted from its last, the rest evenly to its frames by attention. All other tokens join the most
    similar peak of their segment, whose own token weighs ``least`` or more. Values are the public code's. Deviations from
    it: frames are compared by their mean tokens, where no pooled feature is given; a token joins one peak, not one in
    each anchor frame; budgets are exact where frames differ in size; no random noise on densities.
    """

    pairs = True
    small = {"segments": 2, "cosine_threshold": -1.0}
    segments: int = option(8, "into how many segments the clip is cut at least", lo=1, unit="segments")
    cosine_threshold: float = option(
        0.9, "below which cosine similarity of neighbouring frames the clip is cut", was="likeness", **COSINE
    )
    context: float = option(0.4, "what goes to density peaks, of a segment's budget", **SHARE)
    stride: int = option(4, "of how many frames one has density peaks", lo=1, unit="frames")
    least: float = option(0.6, "what a peak's own token weighs at least in its average", **SHARE)

    @property
    def needs(self):
        return (CLSAttention(),)

    def score(self, s: Signals) -> Tensor:
        return score.attention(s, self.needs[0])

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        x, frame = s.features.detach(), temporal.frames(s)
        segment = temporal.segments(x, frame, self.segments, self.cosine_threshold)
        salient, context = self._shares(keep, select.group_sizes(frame, s.valid, segment.shape[1]), segment)
        chosen = select.top_of_each(self.score(s), salient, frame, s.valid)
        place, filled = temporal.table(frame)
        rest = filled & ~chosen.gather(1, place.flatten(1)).view_as(filled)
        peaks = temporal.peaks(x, context, place, rest, NEIGHBOURS)
        target = merge.nearest_within(x, peaks, segment.gather(1, frame.clamp(min=0)))
        target = target.masked_fill(chosen | ~s.valid, -1)
        return Reduction.weighted(chosen | peaks, target, merge.anchored(chosen | peaks, target, self.least))

    def _shares(self, keep: Tensor, size: Tensor, segment: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens that each frame keeps for attention and for density, ``(B, F)`` each."""
        place, valid = temporal.table(segment)
        quota, size = (
            torch.where(valid, t.gather(1, place.flatten(1)).view_as(place), 0).flatten(0, 1)
            for t in (budget.allot(keep, size.double(), size), size)
        )
        total, frames = quota.sum(1), (size > 0).sum(1, keepdim=True)
        behind = frames - 1 - torch.arange(size.shape[1], device=size.device)
        anchor = (behind % self.stride == 0) & (behind >= 0)
        dense, even = torch.floor(self.context * total.double()).long(), torch.ones_like(size)
        salient = budget.allot(total - dense, even, size)
        # Anchors are counted from the last, and so are those that take one more.
        room = torch.where(anchor, size - salient, 0)
        context = budget.allot(dense, even, room.flip(1)).flip(1)
        # Anchors that are full leave the rest of their share to attention.
        salient = salient + budget.allot(total - salient.sum(1) - context.sum(1), even, size - salient - context)
        a, b = (temporal.back(t.view_as(place), place, valid, segment.shape[1], 0) for t in (salient, context))
        return a, b
