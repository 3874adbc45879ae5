from dataclasses import dataclass

import torch
from torch import Tensor

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.options import option
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.parts import select
from tokensieve.parts.numeric import twins
from tokensieve.parts.score import temporal


@register_method("lftr", systems=[199])
@dataclass(frozen=True)
class LFTR(Method):
    """Merges each place over a few consecutive frames by temporal weights, then drops tokens of low spatial weight.

    Source: arXiv 2501.17391; no public code. Up to ``window`` frames become one, fewer where the budget asks for more
    tokens than that leaves. A frame's temporal weight is a softmax over the window of its mean difference to the frame
    before (the second frame's, for the first), in units of the clip's mean: equal in a static clip. A merged token's
    spatial weight is its mean difference to the tokens beside it, above and below; without a grid, beside it. The
    first page and abstract name the two steps, merging in time and dropping in space, and the differences; the
    softmax and the default of 4 frames (with 4 in space, the paper's 16 fold) are this library's choice.
    """

    positional = "frames of a window become one"

    window: int = option(4, "how many frames become one, at most", lo=1, unit="frames")

    def temporal_weights(self, s: Signals) -> Tensor:
        """``(B, N)``: of each token's frame, before the softmax over the window."""
        frame = temporal.frames(s)
        link = temporal.before(frame)
        moved = temporal.per_frame(temporal.change(s.features.detach(), link), frame, link >= 0)
        if moved.shape[1] > 1:
            moved[:, 0] = moved[:, 1]
        value = moved.gather(1, frame.clamp(min=0))
        mean = (value * s.valid).sum(1, keepdim=True) / s.valid.sum(1, keepdim=True)
        return value / mean.clamp(min=1e-12)

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        frame = temporal.frames(s)
        window = (s.valid.sum(1) // keep).clamp(max=self.window)[:, None]
        run = torch.where(s.valid, frame // window, -1)
        head = twins.heads(run * s.n + temporal.places(frame), s.valid)
        step = torch.arange(s.n, device=s.device)
        logit, into = self.temporal_weights(s), head.clamp(min=0)
        most = torch.full_like(logit, -torch.inf)
        most.scatter_reduce_(1, into, logit.masked_fill(~s.valid, -torch.inf), "amax")
        scale = (logit - most.gather(1, into)).clamp(max=0).exp()
        merged = Reduction.merge(head == step, head, scale * s.weight)
        x = merged.apply(s.features.detach())
        place, filled = temporal.table(run.gather(1, merged.kept).masked_fill(~merged.mask, -1))
        weight = temporal.contrast(temporal.rows(x, place), filled.flatten(0, 1), temporal.grid(s, filled))
        weight = temporal.back(weight.view(place.shape), place, filled, merged.m, 0.0)
        return merged.then(Reduction.keep(select.top(weight, keep, merged.mask)))
