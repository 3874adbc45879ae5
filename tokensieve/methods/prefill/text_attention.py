from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import TextAttention
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.parts import score, select


@register_method("text-attention", systems=[287, 316, 397])
@dataclass(frozen=True)
class TextRanking(Method):
    """Keeps the visual tokens to which the text attends most, on average over its tokens.

    The stage inside the language model of several systems: STAR (arXiv 2505.12359, which also averages over the tokens of the
    answer; they do not exist yet when the prompt is read), CLS Inflection Pruning (arXiv 2409.01162) and FrameFusion (arXiv
    2501.01986, whose code averages over all queries).
    """

    site = "prefill"
    sites: ClassVar[tuple[str, ...]] = ("prefill", "handoff")

    @property
    def needs(self):
        return (TextAttention,)

    def score(self, s: Signals) -> Tensor:
        return score.mean_row(*score.text_rows(s, TextAttention))

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        return Reduction.keep(select.top(self.score(s), keep, s.valid))
