from dataclasses import dataclass

from torch import Tensor

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import Need
from tokensieve.core.options import option
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.parts import select


@register_method("bavit", systems=[304])
@dataclass(frozen=True)
class BAViT(Method):
    """Has the patches enter an encoder that a small classifier takes for foreground.

    Source: arXiv 2410.09324 (Background Aware Vision Transformer). The classifier, two layers that are trained on boxes or masks,
    runs on the patches in front of the encoder (``given={"foreground": classifier}``). With ``least``, patches below that
    probability never enter, however much room the budget has: all background is removed. Without, the budget alone decides.
    """

    site = "patch"
    sites = ("patch", "encoder")
    favours = ("foreground",)
    small = {"least": 0.3}
    least: float | None = option(None, "the probability of foreground below which a patch never enters", lo=0, hi=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "adaptive", self.least is not None)

    @property
    def needs(self):
        return (Need("foreground"),)

    def score(self, s: Signals) -> Tensor:
        return s.get(self.needs[0])[1]

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        likely = self.score(s)
        chosen = select.top(likely, keep, s.valid)
        if self.least is None:
            return Reduction.keep(chosen)
        first = select.top(likely, keep.clamp(max=1), s.valid)
        return Reduction.keep(chosen & ((likely >= self.least) | first))
