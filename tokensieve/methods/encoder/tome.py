from dataclasses import dataclass

from torch import Tensor

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import Keys
from tokensieve.core.options import option
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.parts.merge import match


@register_method("tome")
@dataclass(frozen=True)
class ToMe(Method):
    """Merges the most similar pairs between tokens at even and at odd places into averages weighted by size.

    Source: arXiv 2210.09461. Similarity is the cosine of keys, averaged over heads; in front of a language model they come side
    by side, and no average is taken.
    One matching lets at most half of the tokens leave; a smaller budget takes several in one call, between which
    the keys of merged tokens are averaged like the tokens. In an encoder it runs once per layer with an equal
    number of tokens leaving each time, and later attention adds the logarithm of the size. Deviations from the
    public code: merged tokens stay in the order of the source instead of one set behind the other, so later layers
    alternate over positions; the CLS token takes no place in the alternation; ties go to the earlier token.

    With ``cell`` (the default at `diffusion`, after arXiv 2303.17604) the first token of each cell of the grid is a
    destination, and the most similar of all others join theirs: one matching, for budgets down to one token a cell.
    Deviations from that paper's public code: the destination of a cell is its first token instead of one drawn anew in
    each call, what is compared are the states that enter attention, and every resolution is merged, not the finest alone.
    """

    site = "encoder"
    sites = ("encoder", "handoff", "prefill", "diffusion")
    pairs = True
    proportional = True
    between = True
    positional = "only tokens at even places leave in a round"
    sited = {"diffusion": {"cell": 2}}
    cell: int | None = option(
        None, "side of the cells of the grid of which each has one destination", lo=2, unit="tokens"
    )

    @property
    def needs(self):
        return (Keys(),)

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        metric = match.metric(s, self.needs[0])
        if self.cell is None:
            chosen, target = match.bipartite(metric, keep, s.valid, s.weight)
        else:
            chosen, target = match.celled(metric, keep, s.valid, s.grid, self.cell)
        return Reduction.merge(chosen, target, s.weight)
