from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from tokensieve.core.method import CacheMethod
from tokensieve.core.method_registry import get_method, register_method
from tokensieve.core.options import option
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.methods.cache.score_wrappers import Inner, always_keep_of_heads, of_heads, pairs, ranking
from tokensieve.methods.cache.snapkv import SnapKV
from tokensieve.methods.recurring import SHARE
from tokensieve.parts import budget, score, select


@register_method("adakv")
@dataclass(frozen=True)
class AdaKV(Inner, SnapKV):
    """SnapKV's votes, ranked over all heads of a layer at once: heads whose attention is spread out keep more entries.

    Source: arXiv 2407.11550. Every head is sure of its ``window`` last tokens and of the ``floor`` share of an even budget beyond
    them. With a ``scorer``, another method that ranks the entries of each head (``options`` are its own), its scores are ranked
    so, and what it protects is safe. Defaults are those of the public code (pooling "max" over 7). Deviation: the floor goes to
    each head's best, and the rest by rank, where the code shrinks the counts of one ranking towards the floor and rounds.
    """

    unit = "entry"
    small = {"window": 4, "kernel": 3, "floor": 0.9}
    inert = {"options": "options of the method that scorer names"}
    kernel: int = option(7, "over how many neighbouring entries votes are pooled", lo=1, odd=True, unit="tokens")
    pooling: str = option("max", "how the votes of neighbours are pooled", choices=("mean", "max"))
    floor: float = option(0.2, "what every head is sure of beyond the window, of an even budget", **SHARE)
    scorer: str = option("", 'the cache method whose scores are ranked; "" for the votes of `snapkv`')
    options: Any = option((), "options of the scorer, a mapping, kept as pairs")

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "options", pairs(self.options))
        if ranking(self).unit != "head":
            raise ValueError(
                f"adakv: scorer={self.scorer!r}; it ranks no entries of single heads: take one that does ('keydiff', ...)"
            )

    @property
    def inner(self) -> CacheMethod:
        if not self.scorer:
            return SnapKV(self.window, self.kernel, self.pooling)
        return cast(CacheMethod, get_method(self.scorer, **dict(self.options)))

    def score(self, s: Signals) -> Tensor:
        if self.scorer:
            return of_heads(self.inner, s)
        return score.observed(s, self.needs[0], self.kernel, self.pooling, s.heads)

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        head, rank = s.heads, self.score(s)
        held = select.group_sizes(head, s.valid, int(head.max()) + 1)
        even = budget.allot(keep, (held > 0).float(), held)
        late = even.clamp(max=self.window)
        always_keep = always_keep_of_heads(self.inner, s, even) if self.scorer else score.recent(s, late, head)
        floor = torch.floor((even - self.min_kept).clamp(min=0) * self.floor).long()
        always_keep = always_keep | select.top_of_each(rank, floor, head, s.valid & ~always_keep)
        return Reduction.keep(always_keep | select.top(rank, keep - always_keep.sum(1), s.valid & ~always_keep))
