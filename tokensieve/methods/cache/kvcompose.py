from dataclasses import dataclass

from torch import Tensor

from tokensieve.core.method import CacheMethod
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import WindowAttention
from tokensieve.core.options import option
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.parts import budget, score, select


@register_method("kvcompose", systems=[204])
@dataclass(frozen=True)
class KVCompose(CacheMethod):
    """Composite slots: each holds every head's entry of one rank, and layers get as many as rank highest over all of them.

    Source: arXiv 2509.05165. A head ranks its entries by the highest attention that any of the ``window`` last tokens pays them,
    averaged over the query heads that share it. A slot is worth the mean of its entries' scores; one ranking of the slots of all
    layers shares the budget out. All heads of a layer keep equally many, so that its cache stays one tensor. Deviations: the
    paper looks at a second pass over the whole prompt (or at questions known beforehand), which doubles the prefill, where
    this looks at the last tokens, which always stay; and the public code adds the mean over heads to each head's score and
    raises the first layer to the largest budget of any.
    """

    unit = "entry"
    shared = True
    small = {"window": 4}
    positional = "the last tokens stay"
    window: int = option(32, "the last tokens, whose attention ranks the entries and which stay", lo=1, unit="tokens")

    @property
    def needs(self):
        return (WindowAttention(self.window),)

    @property
    def min_kept(self) -> int:
        return self.window

    def score(self, s: Signals) -> Tensor:
        rows = s.get(self.needs[0])[1]
        rows = score.per_token(rows.amax(-2)) if rows.dim() == 4 else rows.amax(1)
        # Attention is at most 1.
        return rows + 2 * score.recent(s, self.window, s.heads)

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        head, rank = s.heads, self.score(s) if s.ranking is None else s.ranking
        held = select.group_sizes(head, s.valid, int(head.max()) + 1)
        return Reduction.keep(select.top_of_each(rank, budget.split(keep, held > 0), head, s.valid))
