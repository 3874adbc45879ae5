from dataclasses import dataclass

import torch
from torch import Tensor

from tokensieve.core.method import CacheMethod
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import Visual, VisualShare, WindowAttention
from tokensieve.core.options import option
from tokensieve.core.signals import Signals
from tokensieve.parts import score


@register_method("vasparse", systems=[288])
@dataclass(frozen=True)
class VASparse(CacheMethod):
    """Keeps entries that the last token attends to, and those that themselves looked at the image.

    Source: arXiv 2501.06553, its token selection. An entry ranks by its squared attention plus ``weight`` times a softmax over
    all entries of how much of each one's own attention went to visual tokens. Text sinks are punished: the attention of a
    text entry counts for no more than the most that a visual one gets (``sinks=True`` leaves them as they are). Not
    part of it: the contrast with logits of a sparser view, which changes what is generated and not what is cached.
    Deviations: the paper lowers the sinks' weights inside the model's attention, here only in the ranking; heads of a layer
    keep the same entries; ``weight`` is ours.
    """

    unit = "token"
    positional = "the last token stays"
    weight: float = option(0.1, "what an entry's own attention to the image weighs beside the attention to it", lo=0)
    sinks: bool = option(False, "whether text sinks keep their attention")

    @property
    def needs(self):
        return (WindowAttention(1), VisualShare, Visual)

    @property
    def min_kept(self) -> int:
        return 1

    def score(self, s: Signals) -> Tensor:
        recall, visual = score.per_token(s.get(self.needs[0])[1]), s.valid & (s.get(Visual)[1] > 0)
        if not self.sinks:
            most = recall.masked_fill(~visual, -torch.inf).amax(1, keepdim=True)
            recall = torch.where(visual | most.isinf(), recall, recall.minimum(most))
        looked = score.per_token(s.get(VisualShare)[1]).masked_fill(~s.valid, -torch.inf).softmax(1)
        return recall**2 + self.weight * looked

    def always_keep(self, s: Signals, keep: Tensor) -> Tensor:
        return score.recent(s, 1)
