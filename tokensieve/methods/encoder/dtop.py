from dataclasses import dataclass

import torch
from torch import Tensor

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import Need
from tokensieve.core.options import option
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.parts import select


@register_method("dtop", systems=[58])
@dataclass(frozen=True)
class DToP(Method):
    """Lets the tokens leave that a head is sure about already, but for a few of each class, which are context for the others.

    Source: arXiv 2308.01045. A head on the states where tokens leave says how likely each is of each class (``given={"classes":
    head}``); one whose likeliest class reaches ``sure`` exits with that prediction, and ``context`` tokens of each class, those
    that are surest, stay. The budget is the most that stays; the least sure have it first. Who left where is in the sieve's
    ``last.left``, and the restored state of a token is the one that its head saw. Deviations: the budget, which the paper lacks;
    each row is counted alone, where the code prunes batches of one picture.
    """

    site = "encoder"
    sites = ("encoder",)
    schedule = "once"
    adaptive = True
    unranked = "the surest of each class stay"
    small = {"sure": 0.5, "context": 1}
    sure: float = option(0.95, "from which probability of its class on a token leaves", lo=0, hi=1, unit="probability")
    context: int = option(5, "how many tokens of each class stay all the same", lo=0, unit="tokens")

    @property
    def needs(self):
        return (Need("classes"),)

    def score(self, s: Signals) -> Tensor:
        _, classes = s.get(self.needs[0])
        return -classes.amax(2)

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        _, classes = s.get(self.needs[0])
        likely, label = classes.max(2)
        count = torch.full((s.batch, classes.shape[2]), self.context, device=s.device)
        context = select.top(likely, keep, select.top_of_each(likely, count, label, s.valid))
        unsure = s.valid & ~context & (likely < self.sure)
        stays = context | select.top(-likely, keep - context.sum(1), unsure)
        none = ~stays.any(1, keepdim=True)
        return Reduction.keep(stays | (none & select.top(-likely, torch.ones_like(keep), s.valid)))
