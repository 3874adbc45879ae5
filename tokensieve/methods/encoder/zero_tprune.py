from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import Keys, Need
from tokensieve.core.options import option
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.methods.recurring import SHARE
from tokensieve.parts import select

BLOCK = 512


@register_method("zero-tprune", systems=[110])
@dataclass(frozen=True)
class ZeroTPrune(Method):
    """Drops the tokens at which attention does not come to rest, and of the others those most like a more important one.

    Source: arXiv 2305.17328. Importance is a PageRank over the attention graph (mean received attention where that is not known),
    by head, and over heads the root of the sum of squares, heads being left out whose importance varies too little or too much.
    Of the tokens that leave, ``similar`` leave in a second stage: the survivors' less important half is matched with the other
    half by the cosine of keys, and the best matched are dropped. Deviations: the number of rounds is the same in all layers; one
    budget stands for the two rates of each layer; where all heads are left out, all are in.
    """

    site = "encoder"
    sites = ("encoder", "handoff")
    pairs = True
    unranked = "those most like a more important one leave, however important they are"
    positional = "of two alike, the less important half's leaves"
    inert = {
        "least": "importance that a caller passes varies as it likes, by head alike",
        "most": "importance that a caller passes varies as it likes, by head alike",
    }
    similar: float = option(0.3, "which share of those that leave are the most similar ones", **SHARE)
    least: float = option(0.01, "the variance of a head's importance below which it does not count", lo=0)
    most: float = option(0.7, "that above which it does not", lo=0)

    @property
    def needs(self):
        return (Need("pagerank", (), ("received_attention", "cls_attention")), Keys())

    def score(self, s: Signals) -> Tensor:
        _, value = s.get(self.needs[0])
        if value.dim() == 2:
            return value
        heads = value.flatten(1, -2).double() * s.valid[:, None]
        heads = heads * s.valid.sum(1)[:, None, None]  # of a mean of one, as the limits are meant
        middle = heads.sum(2, keepdim=True) / s.valid.sum(1)[:, None, None]
        spread = ((heads - middle).square() * s.valid[:, None]).sum(2) / s.valid.sum(1)[:, None]
        counts = (spread >= self.least) & (spread <= self.most)
        counts |= ~counts.any(1, keepdim=True)
        return (heads.square() * counts[..., None]).sum(1).sqrt().to(value.dtype)

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        score = self.score(s)
        alike = ((s.valid.sum(1) - keep).double() * self.similar).long().minimum(keep - 1)
        stay = select.top(score, keep + alike, s.valid)
        upper = select.top(score, (keep + alike + 1) // 2, s.valid)
        lower = stay & ~upper
        gone = select.top(self._likeness(s.metric(self.needs[1]), upper), alike, lower)
        return Reduction.keep(stay & ~gone)

    def _likeness(self, keys: Tensor, to: Tensor) -> Tensor:
        """``(B, N)``: the largest cosine with one of some tokens; in blocks of rows."""
        unit = normalize(keys, dim=-1)
        others = unit.transpose(1, 2)
        parts = [(rows @ others).masked_fill(~to[:, None], -2.0).amax(2) for rows in unit.split(BLOCK, 1)]
        return torch.cat(parts, 1)
