from dataclasses import dataclass

from torch import Tensor

from tokensieve.core.method import CacheMethod
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import AccumulatedAttention, Keys, WindowAttention
from tokensieve.core.options import option
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.methods.recurring import COSINE
from tokensieve.parts import merge, score, select


@register_method("ems", systems=[179])
@dataclass(frozen=True)
class EMS(CacheMethod):
    """Evicts the entries of least importance and merges the middling ones into those that stay, head by head.

    Source: arXiv 2412.08521. Importance is the larger of two, each in units of its mean: the attention accumulated from all
    queries, and that from the ``window`` last ones, which themselves stay. Of the rest, the ``middle`` times the budget that
    rank next go to the entry that stays whose key is most like theirs (by cosine), averaged by importance; where none reaches
    ``cosine_threshold``, an entry falls to the zero class: it is dropped, as are all that rank lower. A merged key has the
    mean length of its keys. Deviation: there is no public code; ``window``, ``middle`` and ``cosine_threshold`` are the same
    for all heads, where the paper sets them by each head's sparsity and redundancy; and of a prompt, or a chunk of one, of more
    than ``queries`` tokens, so many stand for all, evenly spaced (the window's count by themselves).
    """

    small = {"window": 4, "middle": 0.5, "cosine_threshold": 0.0}
    positional = "the last tokens stay"
    window: int = option(32, "the last tokens, whose attention counts by itself and which stay", lo=1, unit="tokens")
    middle: float = option(3.0, "how many entries of middling rank may be merged", lo=0, unit="times the budget")
    cosine_threshold: float = option(
        0.6, "the least likeness of keys at which an entry is merged instead of dropped", was="alike", **COSINE
    )

    queries: int = option(512, "how many queries of a pass are read, at most, and stand for all", lo=1, unit="tokens")

    @property
    def needs(self):
        return (AccumulatedAttention(queries=self.queries), WindowAttention(self.window), Keys())

    @property
    def min_kept(self) -> int:
        return self.window

    def score(self, s: Signals) -> Tensor:
        everywhere = score.attention(s, self.needs[0])
        lately = score.per_token(s.get(self.needs[1])[1])
        count = s.valid.sum(1, keepdim=True)
        return (score.normalized(everywhere, s.valid) * count).maximum(score.normalized(lately, s.valid) * count)

    def always_keep(self, s: Signals, keep: Tensor) -> Tensor:
        return score.recent(s, keep.clamp(max=self.window))

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        rank, always_keep = self.score(s), self.always_keep(s, keep)
        stay = always_keep | select.top(rank, keep - always_keep.sum(1), s.valid & ~always_keep)
        middling = select.top(rank, (keep * self.middle).round().long(), s.valid & ~stay)
        target, like = merge.nearest(s.metric(self.needs[2]), stay, asked=middling)
        joins = middling & (like >= self.cosine_threshold)
        # An entry that nobody attends to still is what it is.
        return Reduction.merge(stay, target.masked_fill(~joins, -1), rank.clamp(min=1e-6))
