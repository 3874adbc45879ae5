from dataclasses import dataclass

import torch
from torch import Tensor

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import Rarity, Words
from tokensieve.core.options import option
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.parts import merge, select
from tokensieve.parts.numeric import twins


@register_method("whole-words", systems=[131])
@dataclass(frozen=True)
class WholeWords(Method):
    """One vector per word, the mean of its tokens; where words exceed the budget, the most frequent ones leave.

    Source: arXiv 2203.13088. ``unique`` averages all places where a word stands in the text, as in the paper; otherwise
    each place has its own vector. Tokens of no word (markers) stay on their own. Keeps fewer than the budget where there
    are fewer words. Deviations: words leave by inverse document frequency, where the paper learns which; means are
    brought back to the length of their vectors.
    """

    site = "vectors"
    sites = ("vectors",)
    adaptive = True
    needs = (Words, Rarity)
    small = {"unique": False}
    positional = "a word stands where it stands first, whatever its tokens look like"
    unique: bool = option(True, "whether all places where a word stands share one vector")

    def score(self, s: Signals) -> Tensor:
        """The rarest token of each word speaks for it."""
        head = self._heads(s)
        rarity = s.get(Rarity)[1].masked_fill(head < 0, -torch.inf)
        best = torch.full_like(rarity, -torch.inf).scatter_reduce_(1, head.clamp(min=0), rarity, "amax")
        return best.gather(1, head.clamp(min=0)).masked_fill(head < 0, 0.0)

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        head = self._heads(s)
        place = torch.arange(s.n, device=s.device)
        chosen = select.top(self.score(s), keep, head == place)
        target = head.masked_fill(~chosen.gather(1, head.clamp(min=0)) | (head < 0), -1)
        return Reduction.weighted(chosen, target, merge.levelled(s.features, chosen, target, s.weight))

    def _heads(self, s: Signals) -> Tensor:
        """``(B, N)``: the first token of each token's word; -1 at padding."""
        word = s.get(Words)[1].long()
        place = torch.arange(s.n, device=s.device).expand_as(word)
        if not self.unique:
            word = _runs(word, s.valid)
        return twins.heads(torch.where(word < 0, word.amax() + 1 + place, word), s.valid)


def _runs(word: Tensor, valid: Tensor) -> Tensor:
    """Words numbered by place: neighbours of the same word share a number; -1 stays."""
    front = select.compact(valid)[0]
    own = word.gather(1, front)
    new = torch.ones_like(own)
    new[:, 1:] = (own[:, 1:] != own[:, :-1]).long()
    number = torch.full_like(word, -1).scatter_(1, front, new.cumsum(1))
    return torch.where(word < 0, -1, number)
