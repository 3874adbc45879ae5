from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tokensieve.core.method import PromptMethod
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import Text
from tokensieve.core.options import option
from tokensieve.core.signals import Signals
from tokensieve.parts import score, select
from tokensieve.parts.numeric import similarity, twins
from tokensieve.parts.select import coverage, marginal

SHARP = 10.0
"""How sharply a unit's likeness to the question weighs it among what is to be covered: e to this power at a cosine of 1."""


PICKS = 1000
"""Units that are weighed against each other, at most: time grows with them times all units."""


@register_method("question")
@dataclass(frozen=True)
class ByQuestion(PromptMethod):
    """Units whose vectors are near to the question's, each less so where one that is in already says the same.

    A unit counts for a share as much as the better one of its two neighbours in the text, so that what stands beside an answer
    can come with it. Units that repeat another word for word enter behind all others. Behind the first thousand, units enter by
    their worth alone, so that time is linear in the text. ``by`` is maximal marginal relevance, or
    facility location: how well what is in covers all units, each as far as it is like the question. Source: Carbonell and
    Goldstein, SIGIR 1998 (doi 10.1145/290941.291025), and for coverage of a question arXiv 2508.18264; with several question
    vectors the nearest counts. Deviation: neighbours and repetitions are no part of either.
    """

    needs = (Text,)
    positional = "what stands beside a unit that is like the question counts for more"
    unranked = "what repeats other units is worth less than its own likeness to the question"
    by: str = option("mmr", "how repetition is weighed", choices=("mmr", "facility"))
    trade: float = option(0.8, "how much likeness to the question counts, against repetition", lo=0.0, hi=1.0)
    neighbours: float = option(
        0.4, "the share that the better neighbour has in a unit's worth", lo=0.0, hi=1.0, unit="share"
    )

    def score(self, s: Signals) -> Tensor:
        """Cosine with the question, each unit's own and its better neighbour's."""
        _, text = s.get(Text)
        like = score.cosine(s.features, text)
        if s.text_mask is not None:
            like = like.masked_fill(~s.text_mask[:, None], -torch.inf)
        own = twins.level(like.amax(2), twins.firsts(s.features, s.valid))
        place, there = select.compact(s.valid)
        front = own.gather(1, place).masked_fill(~there, -1.0)
        wall = front.new_full((s.batch, 1), -1.0)
        beside = torch.maximum(torch.cat([wall, front[:, :-1]], 1), torch.cat([front[:, 1:], wall], 1))
        near = torch.zeros_like(own).scatter_(1, place, beside)
        return (1 - self.neighbours) * own + self.neighbours * torch.maximum(own, near)

    def order(self, s: Signals, most: Tensor) -> Tensor:
        worth, unit = self.score(s), normalize(s.features, dim=-1)
        first = twins.firsts(s.features, s.valid)
        fresh = s.valid if first is None else s.valid & (first == torch.arange(s.n, device=s.device))
        most = most.clamp(max=PICKS)
        if self.by == "mmr":
            picked = marginal.marginal(unit, worth, most, fresh, self.trade)
        else:
            weight = (SHARP * worth).masked_fill(~s.valid, -torch.inf).softmax(1)[:, None] * (1 - self.trade)
            like = similarity.dots(unit)
            reach = lambda place: like(place).clamp(min=0) * weight  # noqa: E731
            picked = coverage.covering(reach, most, fresh, bonus=self.trade * worth)
        return marginal.behind(marginal.behind(picked, worth, fresh), worth, s.valid)
