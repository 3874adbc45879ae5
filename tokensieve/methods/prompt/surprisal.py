from dataclasses import dataclass

from torch import Tensor

from tokensieve.core.method import PromptMethod
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import Surprisal
from tokensieve.core.options import option
from tokensieve.core.signals import Signals


@register_method("surprisal")
@dataclass(frozen=True)
class BySurprisal(PromptMethod):
    """Units that a small language model could least foresee enter first.

    Source: Selective Context (arXiv 2310.06201) and LLMLingua (arXiv 2310.05736), whose ranking it is: the mean nats of a unit's
    tokens. Deviations: the text is read in windows, so that it may be of any length; whole words go, where the second drops
    tokens; a budget is exact; there is no budget of its own for instructions and examples: protect what has to stay.
    """

    needs = (Surprisal,)
    vectors = False
    inert = {"features": "units are ranked by a language model", **PromptMethod.inert}
    unit: str = option("word", "what the text is cut into", choices=("passage", "sentence", "line", "word"))

    def score(self, s: Signals) -> Tensor:
        return s.get(Surprisal)[1]
