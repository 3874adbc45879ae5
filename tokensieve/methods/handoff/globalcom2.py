from dataclasses import dataclass

import torch
from torch import Tensor

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import CLSAttention
from tokensieve.core.options import option
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.methods.recurring import encoder_layer_option
from tokensieve.parts import budget, score, select
from tokensieve.parts.score import crops
from tokensieve.parts.select import groups


@register_method("globalcom2", systems=[0])
@dataclass(frozen=True)
class GlobalCom2(Method):
    """Lets the thumbnail decide how much of each crop is kept, and share in the ranking of its tokens.

    Source: arXiv 2501.05179. Of n crops, one keeps a share of its tokens in proportion to 1 + p - 1/n, with p the
    softmax over crops of the thumbnail's CLS scores summed over the crop's region, at ``temperature``; the thumbnail
    keeps its plain share. Thumbnail tokens are ranked by CLS attention, those of a crop by their own CLS attention
    plus the thumbnail's at the same spot, each scaled to unit length over the crop. A picture without crops is ranked
    as a whole. Deviations from the public code: it works on scores in front of the softmax; budgets here use the
    logarithm of attention, centred over the thumbnail (the same up to a constant), and ranks use attention itself; the
    total is exact.
    """

    temperature: float = option(
        10.0, "of the softmax over crops; the higher, the more even their budgets", above=0, unit="summed logarithms"
    )
    encoder_layer: int = encoder_layer_option()

    @property
    def needs(self):
        return (CLSAttention(self.encoder_layer),)

    def score(self, s: Signals) -> Tensor:
        own, (group, number) = score.attention(s, self.needs[0]), crops.of(s)
        if number == 2:
            return own
        seen = crops.seen(own, crops.spots(s), s.valid & (group == 0))
        blended = groups.scaled(own, group, s.valid, number) + groups.scaled(seen, group, s.valid, number)
        alone = select.group_sizes(group, s.valid, number)[:, 1:-1].sum(1, keepdim=True) == 0
        return torch.where((group == 0) | alone, own, blended)

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        group, number = crops.of(s)
        held = select.group_sizes(group, s.valid, number)
        weight = held.double()
        if number > 2:
            alone = held[:, 1:-1].sum(1, keepdim=True) == 0
            weight = torch.where(alone, weight, self._shares(s, group, held))
        count = budget.allot(keep, weight, held)
        return Reduction.keep(select.top_of_each(self.score(s), count, group, s.valid))

    def _shares(self, s: Signals, group: Tensor, held: Tensor) -> Tensor:
        thumbnail, filled = s.valid & (group == 0), held[:, 1:-1] > 0
        logit = score.attention(s, self.needs[0]).clamp(min=1e-12).log()
        logit = logit - score.mean_row(logit[..., None], thumbnail)
        region = crops.regions(crops.spots(s), group, s.valid, held.shape[1])
        summed = groups.sums(logit, region, s.valid, held.shape[1])[:, 1:-1]
        part = (summed / self.temperature).masked_fill(~filled, -torch.inf).softmax(1).nan_to_num(0.0)
        weight = held.double()
        weight[:, 1:-1] *= 1 + part - 1 / filled.sum(1, keepdim=True).clamp(min=1)
        weight[:, -1] = 0
        return weight
