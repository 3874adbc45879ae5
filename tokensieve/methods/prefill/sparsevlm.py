from dataclasses import dataclass

from torch import Tensor

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import Need, TextAttention
from tokensieve.core.options import option
from tokensieve.core.plan import descent, register_plan
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.core.stage import Stage
from tokensieve.methods.recurring import SHARE, at_option
from tokensieve.parts import budget, merge, score, select
from tokensieve.parts.select import distance


@register_method("sparsevlm", systems=[270])
@dataclass(frozen=True)
class SparseVLM(Method):
    """Keeps the visual tokens that relevant text tokens attend to, and clusters the best of the rest into a few more.

    Source: arXiv 2410.04417. Raters are the text tokens of at least average similarity to the image; a visual token's
    score is their mean attention to it. Of the pruned tokens the ``recycled`` share with the highest scores is
    clustered by density peaks, ``ratio`` tokens to a cluster, and averaged; kept tokens and clusters together are the
    budget. With ``rank`` above 0 the count adapts: at most n - rank (n - r) of n tokens stay, r being the rank of the
    raters' attention (the paper's lambda). As a system it runs behind the public code's layers 2, 6 and 15 of 32, counted
    from 0: ``at`` are the layers 3, 7 and 16 in front of which tokens leave, as shares of the depth; in a shallow model
    those that meet are one. Each stage keeps the same share of what it meets. In a plan ``keep`` is the mean over the
    layers, at least ``at[0]`` of the tokens; in ``ts.sieve(model, "sparsevlm", keep=64)`` it is what the last stage leaves.

    Defaults are the public code's. Deviations from it: its counts come from tables for four budgets of 576 tokens (66, 30 and 17
    beside their clusters for "64", which is a mean of 82 where all is counted); raters are chosen anew in front of each stage,
    from the states there (there, once, from the embeddings); survivors keep their position ids (there, they are numbered anew:
    ``positions="compact"``); no random noise on densities, clusters stand at their centre's place, at least half of a small
    budget is kept unmerged, and without text embeddings every text token rates.
    """

    site = "prefill"
    sites = ("prefill",)
    layer = 3
    ends = True
    pairs = True
    recycled: float = option(0.3, "the pruned tokens that are clustered instead of dropped", **SHARE)
    ratio: int = option(10, "how many recycled tokens make a cluster", lo=1, unit="tokens")
    rank: float = option(
        0.0, "of the tokens beyond the rank of attention, how many leave whatever the budget (lambda); 0 for none", lo=0
    )
    at: tuple[float, ...] = at_option((3 / 32, 7 / 32, 16 / 32))

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "adaptive", self.rank > 0)

    @property
    def needs(self):
        return (TextAttention, Need("text", instead=("text_attention", "received_attention")))

    def score(self, s: Signals) -> Tensor:
        return score.mean_row(*self._rated(s))

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        rows, raters = self._rated(s)
        saliency, held = score.mean_row(rows, raters), s.valid.sum(1)
        if self.rank > 0:
            keep = keep.minimum(budget.rank(rows * raters[..., None] * s.valid[:, None], held, self.rank))
        plain, again = budget.recycle(keep, held, self.recycled, self.ratio)
        kept = select.top(saliency, plain, s.valid)
        pruned = select.top(saliency, again, s.valid & ~kept)
        centres = distance.density_peaks(s.features, keep - plain, pruned)
        target, _ = merge.nearest(s.features, centres, euclidean=True)
        return Reduction.merge(kept | centres, target.masked_fill(~pruned, -1), s.weight)

    def _rated(self, s: Signals) -> tuple[Tensor, Tensor]:
        rows, text_valid = score.text_rows(s, TextAttention)
        return rows, text_valid if s.text is None else score.raters(s.text, text_valid, s.features, s.valid)


@register_plan("sparsevlm")
def sparsevlm(method: SparseVLM, keep: budget.Budget) -> list[Stage]:
    """The method at each of its layers."""
    return descent(method, keep, method.at)
