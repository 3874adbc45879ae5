from dataclasses import dataclass

from torch import Tensor

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import PageRank
from tokensieve.core.plan import descent, register_plan
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.core.stage import Stage
from tokensieve.methods.recurring import at_option, first_option
from tokensieve.parts import budget, score, select
from tokensieve.parts.merge import match


@register_method("aim", systems=[10])
@dataclass(frozen=True)
class AIM(Method):
    """Merges the most similar visual embeddings round by round before the language model, which then prunes what is left.

    Source: arXiv 2412.03248. This is the first stage: bipartite soft matching of the features by cosine, at most half of
    the tokens leaving in each round; the second is ``aim-l``. As a system the first keeps ``first`` times the mean that
    is asked for, and the second prunes at the shares ``at`` of the depth. Deviations from the public code: merged tokens
    are true means over all rounds and stay in order; tokens leave at a few layers, the same share each time, where the
    code prunes at every layer from half the depth on, in a straight line down to none.
    """

    sites = ("handoff", "encoder")
    pairs = True
    positional = "only tokens at even places leave in a round"
    first: float = first_option(1.5)
    at: tuple[float, ...] = at_option((0.5, 0.625, 0.75))

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        chosen, target = match.bipartite(s.features, keep, s.valid, s.weight)
        return Reduction.merge(chosen, target, s.weight)


@register_plan("aim")
def aim(method: AIM, keep: budget.Budget) -> list[Stage]:
    """Merging in front of the language model, pruning inside it."""
    return [Stage(method, budget.times(keep, method.first)), *descent(AIML(), keep, method.at)]


@register_method("aim-l", systems=[10])
@dataclass(frozen=True)
class AIML(Method):
    """The second stage of ``aim``: keeps the visual tokens that PageRank over the language model's attention ranks highest.

    Source: arXiv 2412.03248. Attention among all tokens, text included, is sharpened to a temperature of 0.1 and followed
    for five steps from an even start; heads are joined by the root of their mean square, as in the public code.
    Without that signal the attention a token receives, its first step, stands in. Deviations from the public code: padding
    holds nothing at the start, and tokens that left are gone, where there they are masked.
    """

    site = "prefill"
    sites = ("prefill",)

    @property
    def needs(self):
        return (PageRank,)

    def score(self, s: Signals) -> Tensor:
        _, rank = s.get(PageRank)
        return rank if rank.dim() == 2 else score.per_token(rank.square()).sqrt()

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        return Reduction.keep(select.top(self.score(s), keep, s.valid))
