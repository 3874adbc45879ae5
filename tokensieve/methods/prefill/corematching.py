from dataclasses import dataclass

import torch
from torch import Tensor

from tokensieve.core.focus import Focus
from tokensieve.core.method import FocusMethod
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import Neurons, TextNeurons
from tokensieve.core.options import option
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.parts import budget, score, select
from tokensieve.parts.budget import adaptive_count


@register_method("corematching", systems=[300])
@dataclass(frozen=True)
class CoreMatching(FocusMethod):
    """Keeps the visual tokens that activate most of the core neurons, those which the text activates most often.

    Source: arXiv 2505.19235. At ``site="focus"`` it is the neuron side: in the passes behind the prompt, a layer's feed-forward
    network is limited to its own core neurons, ``keep`` of them (a number or a share). A neuron is active where its activation
    is above 0; core neurons are the ``core`` share of all neurons that most text tokens activate. A token's score is how many of
    them it activates, and those above the knee of the ranked scores stay, at most the budget (all, where it is that large).
    Deviations from the public code: it takes the neurons of one token near the prompt's end as the core (``core`` is this
    project's default), zeroes the caches of dropped tokens in layers 5 to 18 of 32, each with a choice of its own, where
    here tokens leave once; and it keeps none where there is no knee.
    """

    site = "prefill"
    sites = ("prefill", "focus")
    layer = 2
    adaptive = True
    core: float = option(0.4, "the neurons that most text tokens activate, of all neurons", above=0, hi=1, unit="share")

    @property
    def needs(self):
        return (Neurons, TextNeurons)

    def score(self, s: Signals) -> Tensor:
        often = self._often(s)
        count = torch.full_like(often[:, 0], max(1, round(self.core * often.shape[1])), dtype=torch.long)
        core = select.top(often, count, often > 0)
        return ((s.get(Neurons)[1] > 0).float() @ core.float()[..., None])[..., 0]

    def focus(self, s: Signals, keep: int | float) -> Focus:
        often = self._often(s)
        every = torch.ones_like(often, dtype=torch.bool)
        return Focus(neurons=select.top(often, budget.counts(keep, every), every))

    def _often(self, s: Signals) -> Tensor:
        """``(B, F)``: the share of text tokens that activate each neuron."""
        rows = (s.get(TextNeurons)[1] > 0).float()
        return score.mean_row(rows, score.valid_text(s, rows))

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        matched = self.score(s)
        count = adaptive_count.within(adaptive_count.knee(matched, s.valid), keep, s.valid)
        return Reduction.keep(select.top(matched, count, s.valid))
