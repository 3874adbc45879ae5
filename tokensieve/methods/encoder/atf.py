from dataclasses import dataclass

from torch import Tensor

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import Need
from tokensieve.core.options import option
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.methods.recurring import BUDGET
from tokensieve.parts import budget, select


@register_method("atf", systems=[310])
@dataclass(frozen=True)
class ATF(Method):
    """Has patches enter an encoder at places that are usually looked at, and where something was detected in this picture.

    Source: arXiv 2506.01519 (Attention-aware Token Filtering). Of the budget, ``static`` goes to the places of the highest
    ``prior`` (attention averaged over a data set, the same in all pictures), the rest to the tokens of the highest
    ``foreground`` (a detector's regions); both are given to the sieve. Deviations: the budget is exact, where the paper joins
    masks whatever their size.
    """

    site = "patch"
    sites = ("patch", "encoder")
    favours = ("foreground", "prior")
    static: float = option(0.5, "what goes to places that are usually looked at", **BUDGET)

    @property
    def needs(self):
        return (Need("prior"), Need("foreground"))

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        prior, objects = (s.get(need)[1] for need in self.needs)
        usual = select.top(prior, budget.fraction_of(keep, self.static), s.valid)
        return Reduction.keep(usual | select.top(objects, keep - usual.sum(1), s.valid & ~usual))

    def score(self, s: Signals) -> Tensor:
        prior, objects = (s.get(need)[1] for need in self.needs)
        return select.ranks(prior, s.valid).minimum(select.ranks(objects, s.valid)).neg().to(prior.dtype)
