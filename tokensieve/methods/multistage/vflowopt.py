from dataclasses import dataclass

import torch
from torch import Tensor

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import Entropy, Keys, Ranking, ReceivedAttention
from tokensieve.core.options import option
from tokensieve.core.plan import descent, register_plan
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.core.stage import Stage
from tokensieve.methods.recurring import at_option, encoder_layer_option, first_option
from tokensieve.parts import budget, merge, score, select
from tokensieve.parts.attention import rows

LEAST = 1e-6


@register_method("vflowopt", systems=[66])
@dataclass(frozen=True)
class VFlowOpt(Method):
    """Ranks tokens by visual attention and the entropy of their patches; what is pruned comes back as one token per cell.

    Source: arXiv 2508.05211. Importance is the attention a token receives from the visual tokens plus ``entropy`` times
    the softmax of the patches' entropies. With ``threshold`` above 0 only those tokens attend that receive more than
    so many times the average. Pruned tokens are averaged by importance within cells of ``cell`` x ``cell`` on the grid,
    and stand at the best one's place; they count towards the budget. As a system this stage keeps ``first`` times the
    mean that is asked for, and ``vflowopt-l`` prunes by the same importance at the shares ``at`` of the depth. The paper
    tunes these values for each model (:func:`tokensieve.planner.drift.tune`); the defaults are ours. Deviations: exact
    budgets; attention is a mean over the tokens that attend, as in the public code (the paper writes a sum); under a
    threshold it is that of the keys to each other, since queries are not kept; later stages keep equal shares.
    """

    small = {"cell": 2}
    positional = "what leaves is averaged in cells of the grid"

    entropy: float = option(1.0, "what the entropy of patches weighs beside attention", lo=0)
    threshold: float = option(
        0.0, "how much attention a token has to receive for its own to count; 0: all count", lo=0, unit="times the mean"
    )
    cell: int = option(6, "the side of the cells whose pruned tokens become one", lo=1, unit="tokens")
    first: float = first_option(1.5)
    at: tuple[float, ...] = at_option((1 / 3, 2 / 3))
    encoder_layer: int = encoder_layer_option()

    @property
    def needs(self):
        ranked = (ReceivedAttention(self.encoder_layer), Entropy)
        return (*ranked, Keys(self.encoder_layer)) if self.threshold > 0 else ranked

    def score(self, s: Signals) -> Tensor:
        context = score.attention(s, self.needs[0])
        if self.threshold > 0:
            context = self._context(s, context)
        name, bits = s.get(Entropy)
        if name != "entropy":
            return context
        return context + self.entropy * bits.masked_fill(~s.valid, -torch.inf).softmax(1)

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        importance = self.score(s)
        chosen, target = merge.recycled(importance, keep, *select.windows(s.valid, s.grid, self.cell))
        return Reduction.merge(chosen, target, (score.normalized(importance, s.valid) + LEAST) * s.weight)

    def _context(self, s: Signals, received: Tensor) -> Tensor:
        lead = s.valid & (score.normalized(received, s.valid) * s.valid.sum(1, keepdim=True) > self.threshold)
        lead = lead | select.top(received, torch.ones_like(lead[:, 0], dtype=torch.long), s.valid)
        keys = s.metric(self.needs[2], self.encoder_layer)[:, None]
        scale, allowed = keys.shape[3] ** -0.5, s.valid[:, None, None]
        from_ = lead / lead.sum(1, keepdim=True)
        return rows.spread(lambda i, j: rows.attend(keys[:, :, i:j], keys, scale, allowed), from_, 1)[:, 0]


@register_plan("vflowopt")
def vflowopt(method: VFlowOpt, keep: budget.Budget) -> list[Stage]:
    """Behind the encoder, then inside the language model."""
    return [Stage(method, budget.times(keep, method.first)), *descent(VFlowOptL(), keep, method.at)]


@register_method("vflowopt-l", systems=[66])
@dataclass(frozen=True)
class VFlowOptL(Method):
    """The later stages of ``vflowopt``: what the first stage ranked highest stays, without a look at the text.

    Source: arXiv 2508.05211. Deviations from the paper: none in the selection; without a first stage the last prompt
    token's attention ranks.
    """

    site = "prefill"
    sites = ("prefill",)

    @property
    def needs(self):
        return (Ranking,)

    def score(self, s: Signals) -> Tensor:
        return score.last_row(*score.text_rows(s, Ranking))

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        return Reduction.keep(select.top(self.score(s), keep, s.valid))
