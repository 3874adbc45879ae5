from dataclasses import dataclass

from torch import Tensor

from tokensieve.core.focus import Focus
from tokensieve.core.method import FocusMethod
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import Need, TextToText
from tokensieve.core.signals import Signals
from tokensieve.parts import budget, score, select

Reading = Need("text_attention", instead=("text",))


@register_method("cmai", systems=[55])
@dataclass(frozen=True)
class CMAI(FocusMethod):
    """Each text token sees, in each layer, only the visual tokens on which the text that it attends to is focused.

    Source: arXiv 2411.15453 (Cross-Modality Attention Inhibition; its companion is ``vmtc``). The focus of a text token on a
    visual token is the sum over text tokens (itself included) of its attention to each of them, times their attention to the
    visual token, averaged over heads; ``keep`` visual tokens of an image with the highest focus stay visible to it, in the
    prompt and while answering, and all of them go on.
    There is no public code; deviation: pairs are a share or a number for each text token, where the paper names low scores,
    and each layer goes by its own attention, before inhibition.
    """

    @property
    def needs(self):
        return (Reading, TextToText)

    def focused(self, s: Signals) -> tuple[Tensor, Tensor]:
        """``(B, Q, N)``, and which rows are valid."""
        rows, valid = score.text_rows(s, Reading)
        text = s.get(TextToText)[1]
        rows = rows * valid[..., None]
        # In double precision: equal columns stay equal.
        return (text.double() @ rows.double()).to(rows.dtype), valid[:, valid.shape[1] - text.shape[1] :]

    def score(self, s: Signals) -> Tensor:
        return score.last_row(*self.focused(s))

    def focus(self, s: Signals, keep: int | float) -> Focus:
        rows, _ = self.focused(s)
        count, valid = budget.counts(keep, s.valid), s.valid[:, None].expand(rows.shape)
        seen = select.top(rows.flatten(0, 1), count.repeat_interleave(rows.shape[1]), valid.flatten(0, 1))
        return Focus(text=seen.view(rows.shape))
