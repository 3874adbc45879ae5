from dataclasses import dataclass

from torch import Tensor

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.options import option
from tokensieve.core.plan import descent, register_plan
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.core.stage import Stage
from tokensieve.methods.prefill.fastv import FastV
from tokensieve.methods.recurring import DEPTH
from tokensieve.parts import budget, select


@register_method("lvlm-csp-scatter", systems=[381])
@dataclass(frozen=True)
class Scatter(Method):
    """Brings back the visual tokens that left in earlier layers, evenly spaced ones where the budget is smaller than all.

    Source: arXiv 2504.10854, the second stage of ``lvlm-csp``. They come back with the state in which they left.
    """

    site = "prefill"
    sites = ("prefill",)
    restores_dropped = True
    inert = {"features": "tokens lie evenly along the row, whatever they hold"}
    positional = "tokens lie evenly along the row"

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        return Reduction.keep(select.evenly(keep, s.valid))


@register_method("lvlm-csp", systems=[381])
@dataclass(frozen=True)
class LVLMCSP(Method):
    """A subset of the visual tokens goes through the first layers, all of them through the next, few through the last.

    Source: arXiv 2504.10854. This is the first stage, the paper's uniform sampling at whole steps along the row; then all
    tokens come back (``lvlm-csp-scatter``) at the share ``scatter`` of the depth, and from ``prune`` on those stay to which the
    last prompt token (in the paper the segmentation token) attends most. As a system the first stage keeps ``coarse`` times
    the mean over the layers that is asked for. ``coarse`` and the layers are ours; a mean is out of reach where what the first
    two stages hold is already more. There is no public code; the paper's other samplings (CLS attention, a segmentation
    model) are other methods at the handoff.
    """

    inert = {"features": "tokens lie evenly along the row, whatever they hold"}
    positional = "tokens lie evenly along the row"

    coarse: float = option(0.5, "what the first stage of the whole system keeps", above=0, unit="times the mean budget")
    scatter: float = option(0.25, "where all tokens of the whole system come back", **DEPTH)
    prune: float = option(0.5, "where the whole system prunes, behind `scatter`", **DEPTH)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scatter >= self.prune:
            raise ValueError(
                f"lvlm-csp: scatter={self.scatter}, prune={self.prune}; tokens must come back before they are pruned"
            )

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        return Reduction.keep(select.strided(keep, s.valid))


@register_plan("lvlm-csp")
def lvlm_csp(method: LVLMCSP, keep: budget.Budget) -> list[Stage]:
    """A subset, then all tokens again, then few."""
    per = keep.per if isinstance(keep, budget.Keep) else "image"
    return [
        Stage(method, budget.times(keep, method.coarse)),
        Stage(Scatter(), budget.Keep(share=1.0, per=per), layers=(method.scatter,)),
        *descent(FastV(), keep, (method.prune,)),
    ]
