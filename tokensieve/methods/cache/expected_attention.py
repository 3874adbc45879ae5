from dataclasses import dataclass

import torch
from torch import Tensor

from tokensieve.core.method import CacheMethod
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import ExpectedLogits, Values
from tokensieve.core.options import option
from tokensieve.core.signals import Signals
from tokensieve.parts import score, select


@register_method("expected-attention")
@dataclass(frozen=True)
class ExpectedAttention(CacheMethod):
    """Keeps the entries that queries still to come can be expected to attend to, weighted by the length of their values.

    Source: arXiv 2510.00636. Queries are taken to be normally distributed as those of the prompt were, turned to the next
    ``future`` positions; the first ``sinks`` tokens always stay and are not counted. Deviation from the public code: the first
    ``sinks`` queries are outliers only where they are the prompt's own (in a prefill in chunks, those of the first chunk).
    """

    small = {"sinks": 2}
    future: int = option(512, "over how many next positions queries are expected", lo=1, unit="tokens")
    sinks: int = option(4, "the first tokens, which always stay", lo=0, unit="tokens")

    @property
    def needs(self):
        return (ExpectedLogits(self.future), Values())

    @property
    def min_kept(self) -> int:
        return self.sinks + 1

    def score(self, s: Signals) -> Tensor:
        logits = s.get(self.needs[0])[1]
        logits = logits[:, None] if logits.dim() == 2 else logits
        rest = s.valid & ~select.first(self._sinks(s), s.valid)
        rest = rest | (s.valid & ~rest.any(1, keepdim=True))
        probability = score.per_token(logits.masked_fill(~rest[:, None], -torch.inf).softmax(-1))
        return probability * torch.linalg.vector_norm(s.metric(self.needs[1]), dim=-1)

    def _sinks(self, s: Signals) -> Tensor:
        return torch.full((s.batch,), self.sinks, device=s.device)

    def always_keep(self, s: Signals, keep: Tensor) -> Tensor:
        return select.first(self._sinks(s).minimum(keep - 1), s.valid)
