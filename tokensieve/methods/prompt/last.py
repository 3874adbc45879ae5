from dataclasses import dataclass

from torch import Tensor

from tokensieve.core.method import PromptMethod
from tokensieve.core.method_registry import register_method
from tokensieve.core.signals import Signals


@register_method("last-text")
@dataclass(frozen=True)
class LastText(PromptMethod):
    """The end of a text: what truncation from the front keeps.

    Source: a baseline, of no paper (compare arXiv 2310.05736, which it is measured beside).
    """

    vectors = False
    inert = {"features": "the order of the text decides", **PromptMethod.inert}
    favours = ("late",)
    positional = "the last ones stay"

    def score(self, s: Signals) -> Tensor:
        return s.valid.to(s.features.dtype).cumsum(1)
