from dataclasses import dataclass

import torch
from torch import Tensor

from tokensieve.core.method import CacheMethod
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import WindowAttention
from tokensieve.core.options import option
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.parts import score, select
from tokensieve.parts.attention import anchor


@register_method("anchor-attention", systems=[153])
@dataclass(frozen=True)
class AnchorAttention(CacheMethod):
    """Prompts read the first keys, those near by, and stripes: keys that score within a ``gap`` of the best of these.

    Source: arXiv 2505.23520. Groups of ``step`` blocks of ``block`` queries read the same keys: the first block, their own, and
    of those between every one whose score with the mean query of any of the blocks is at most ``gap`` below that block's
    anchor, the mean over its queries of the greatest score among the first keys and the group's own. Nothing leaves the
    cache, and decoded tokens read all of it. ``keep`` bounds the keys in front of a group that each head reads, those of
    greatest margin; the paper has no bound. On plain arrays the window's rows are the queries, as one block. Defaults are
    those of the paper. Deviation: ``gap`` is in natural logarithms, as in the public PyTorch code (its kernels take logarithms to
    base 2).
    """

    adaptive = True
    small = {"block": 2, "step": 2, "gap": 1.0}
    block: int = option(128, "queries that are averaged, and first keys that are always read", lo=1, unit="tokens")
    step: int = option(16, "how many blocks of queries read the same keys", lo=1, unit="blocks")
    gap: float = option(12.0, "how far below the anchor a key that is read may score", lo=0, unit="natural logarithm")

    @property
    def needs(self):
        return (WindowAttention(self.block),)

    @property
    def query_block_size(self) -> int:
        return self.block * self.step

    def key_scores(self, query: Tensor, key: Tensor, scale: float, valid: Tensor) -> Tensor:
        return anchor.stripes(query, key, scale, valid, self.block, self.gap)

    def score(self, s: Signals) -> Tensor:
        rows = score.per_token(s.get(self.needs[0])[1].clamp(min=1e-30).log())
        count = torch.full_like(s.valid.sum(1), self.block)
        near = select.first(count, s.valid) | select.last(count, s.valid)
        return rows - rows.masked_fill(~near, -torch.inf).amax(1, keepdim=True)

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        level = self.score(s)
        return Reduction.keep(select.top(level, keep, s.valid & (level >= -self.gap)))
