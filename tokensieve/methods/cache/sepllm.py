from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokensieve.core.method import CacheMethod
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import TokenIds
from tokensieve.core.options import option
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.methods.recurring import BUDGET
from tokensieve.parts import budget, select

MARKS = ".,?!;: \t\n"


def separators(tokenizer: Any) -> tuple[int, ...]:
    """The token ids of a tokenizer that stand for nothing but the paper's separators: ``. , ? ! ; :``, space, tab, line end."""
    texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
    return tuple(i for i, text in enumerate(texts) if text and not text.strip(MARKS) and len(text.strip()) <= 1)


@register_method("sepllm", systems=[351])
@dataclass(frozen=True)
class SepLLM(CacheMethod):
    """Keeps the first tokens, the most recent ones, and the separators between, in which segments of text are summed up.

    Source: arXiv 2412.12094, its training-free and streaming use. ``separators`` are token ids (:func:`separators` finds a
    tokenizer's; without any this is `streamingllm`). Beside ``sinks`` first tokens, at most the ``share`` of the budget goes to
    separators, the latest; what they leave goes to recent tokens. Defaults are those of the public code (4 first, 32
    separators, 224 recent of 260). Deviation: positions stay as they were, where the streaming code numbers entries anew.
    """

    unit = "token"
    small = {"separators": (1, 2), "sinks": 1, "share": 0.5}
    positional = "the first and the most recent tokens stay"
    separators: tuple[int, ...] = option(
        (),
        "the vocabulary's numbers of the separators, as `separators` finds them for a tokenizer",
        lo=0,
        unit="token ids",
    )
    sinks: int = option(4, "the first tokens, which always stay", lo=0, unit="tokens")
    share: float = option(32 / 260, "what separators get at most", **BUDGET)

    @property
    def needs(self):
        return (TokenIds,)

    @property
    def min_kept(self) -> int:
        return self.sinks + 1

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        kept = select.first((keep - 1).clamp(max=self.sinks), s.valid)
        marks = torch.tensor(self.separators, device=s.device, dtype=torch.long)
        is_mark = (s.get(TokenIds)[1][..., None] == marks).any(-1)
        most = budget.fraction_of(keep, self.share).minimum(keep - kept.sum(1) - 1).clamp(min=0)
        recent = select.last(keep - kept.sum(1) - most, s.valid & ~kept)
        kept = kept | recent
        kept = kept | select.last(most, s.valid & is_mark & ~kept)
        return Reduction.keep(kept | select.last(keep - kept.sum(1), s.valid & ~kept))
