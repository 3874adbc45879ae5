from dataclasses import dataclass

import torch
from torch import Tensor

from tokensieve.core.focus import Focus
from tokensieve.core.method import FocusMethod
from tokensieve.core.method_registry import register_method
from tokensieve.core.options import option
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.parts import budget, select


@register_method("yopo", systems=[15])
@dataclass(frozen=True)
class YOPO(FocusMethod):
    """Visual tokens see only their neighbours among themselves, and heads that are inactive on vision leave it alone.

    Source: arXiv 2410.06169. At ``site="focus"``, ``keep`` is the number (or share) of visual tokens that each of them may see:
    the largest odd window of the grid that holds as many (25 is 5 x 5); text sees all. The heads in ``off`` show no visual token
    to anyone and compute nothing for them; :func:`tokensieve.planner.heads.yopo` finds them on calibration prompts, once for a
    model. Skipped visual computation is the same method as a prefill stage: from there on ``keep`` evenly spaced tokens remain.
    Deviations: training-free (the public checkpoints are fine-tuned, and use a quarter of the feed-forward neurons for vision);
    attention stays causal within a window; a head that is off is masked before the softmax, where the public code zeroes its
    weights behind it; one visual token stays where the paper skips all.
    """

    sites = ("focus", "prefill", "handoff")
    inert = {"features": "tokens lie evenly along the row, whatever they hold"}
    positional = "tokens lie evenly along the row"
    off: tuple[int, ...] = option((), "the heads that leave vision alone", lo=0, unit="heads")

    def focus(self, s: Signals, keep: int | float) -> Focus:
        every = torch.ones(1, s.n, dtype=torch.bool, device=s.device)
        count = int(budget.counts(keep, every))
        return Focus(visual=None if count == s.n else select.near(s.valid, s.grid, count), off=self.off)

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        return Reduction.keep(select.evenly(keep, s.valid))
