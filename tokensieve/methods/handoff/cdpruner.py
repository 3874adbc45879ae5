from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import Relevance
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.parts import score
from tokensieve.parts.select import dpp


@register_method("cdpruner")
@dataclass(frozen=True)
class CDPruner(Method):
    """Keeps tokens that matter to the text and are unlike each other: a determinantal point process given the text.

    Source: arXiv 2506.10967. The kernel is the cosine of two tokens times the relevance of both, scaled to the row's
    least and greatest; its most likely set is found greedily. Relevance is the similarity to the text in a space that
    both share. Deviations from the public code: relevance is scaled within a row (there, over the whole batch, so that a
    neighbour changes the selection); it is the signal as given (there, with the opposite sign, since CLIP's patches
    resemble the text they do not show: negate such a signal), or from the text embeddings where none is given; where the
    kept tokens span all others, the most relevant ones follow (there, rounding decides).
    """

    pairs = True

    @property
    def needs(self):
        return (Relevance,)

    def score(self, s: Signals) -> Tensor:
        relevance = score.relevance(s)
        low = relevance.masked_fill(~s.valid, torch.inf).amin(1, keepdim=True)
        high = relevance.masked_fill(~s.valid, -torch.inf).amax(1, keepdim=True)
        return ((relevance - low + 1e-6) / (high - low).clamp(min=1e-6)).clamp(min=0)

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        return Reduction.keep(dpp.most_likely(normalize(s.features, dim=-1) * self.score(s)[..., None], keep, s.valid))
