from dataclasses import dataclass

import torch
from torch import Tensor

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import Relevance
from tokensieve.core.options import option
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.parts import score, select
from tokensieve.parts.budget import adaptive_count


@register_method("trim", systems=[373])
@dataclass(frozen=True)
class TRIM(Method):
    """Keeps the visual tokens whose similarity to the text is an outlier, and the mean of all others as one more token.

    Source: arXiv 2409.10994. Similarities go through a softmax over the tokens; those above Q3 + 1.5 (Q3 - Q1) stay, at
    most the budget. ``appended`` False leaves the mean token out. It stands at the place of the last dropped token and
    counts in the budget; a budget of one token is spent on the best one. ``parity=True`` ranks by the opposite of
    similarity, as the public code does. Deviations from it: a count for each image (the code's is that of the batch),
    and at least one token stays.
    """

    adaptive = True
    positional = "the mean of the others stands at the last of them"
    appended: bool = option(True, "whether the mean of all others stays as one more token")
    parity: bool = option(False, "whether to rank by the opposite of similarity, as the public code does")

    @property
    def needs(self):
        return (Relevance,)

    def score(self, s: Signals) -> Tensor:
        like = score.relevance(s)
        return (-like if self.parity else like).masked_fill(~s.valid, -torch.inf).softmax(-1)

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        saliency = self.score(s)
        room = keep - 1 if self.appended else keep
        count = adaptive_count.outliers(saliency, s.valid).minimum(room.clamp(min=1))
        chosen = select.top(saliency, adaptive_count.within(count, keep, s.valid), s.valid)
        rest = s.valid & ~chosen
        place = torch.arange(s.n, device=s.device)
        last = torch.where(rest, place, -1).amax(1, keepdim=True)
        slot = (place == last) & (room > 0)[:, None] & rest
        if not self.appended or not bool(slot.any()):
            return Reduction.keep(chosen)
        target = torch.where(rest & slot.any(1, keepdim=True), last, -1)
        return Reduction.merge(chosen | slot, target, s.weight)
