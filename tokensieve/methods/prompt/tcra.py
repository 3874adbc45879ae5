from dataclasses import dataclass

from torch import Tensor

from tokensieve.core.method import PromptMethod
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import Shift
from tokensieve.core.options import option
from tokensieve.core.signals import Signals


@register_method("tcra", systems=[112])
@dataclass(frozen=True)
class TCRA(PromptMethod):
    """Words whose absence moves the vector of their sentence farthest enter first; their order in the text stays.

    Source: the semantic compression of TCRA-LLM (arXiv 2310.15556). Shorten text by sentences first with a stage of `question`
    in front, as the paper may by a summary. Deviations: a word is left out of its sentence, not of the passage, and a mask
    token does not stand in its place; the budget is exact.
    """

    needs = (Shift,)
    vectors = False
    inert = {"features": "words are ranked by what their absence does", "unit": "an array holds words already"}
    unit: str = option("word", "what the text is cut into", choices=("word",))

    def score(self, s: Signals) -> Tensor:
        return s.get(Shift)[1]
