from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import Text
from tokensieve.core.options import option
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.parts import score
from tokensieve.parts.numeric import similarity
from tokensieve.parts.select import coverage


@register_method("mmtok", systems=[138])
@dataclass(frozen=True)
class MMTok(Method):
    """Greedily keeps the tokens that together cover the text tokens and all visual tokens best.

    Source: arXiv 2508.18264. A target, a text or a visual token, is covered by a visual token as much as a softmax of
    cosines over all visual tokens says, at temperature ``text_temperature`` or ``temperature``; its coverage is that by
    the best kept token. The objective is the mean coverage of the text plus ``alpha`` times the mean coverage of the
    visual tokens; the greedy rule reaches at least 1 - 1/e of its optimum. Deviations from the public code: visual
    tokens are compared in front of the language model (there, in the encoder's space), and the text is all of the prompt
    (there, keywords of the question).
    """

    pairs = True
    text_temperature: float = option(0.02, "of the softmax that covers text tokens", above=0, unit="cosine")
    temperature: float = option(0.2, "of the softmax that covers visual tokens", above=0, unit="cosine")
    alpha: float = option(0.5, "what covering the visual tokens weighs beside covering the text", lo=0)

    @property
    def needs(self):
        return (Text,)

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        return Reduction.keep(coverage.cover(self._reach(s), keep, s.valid))

    def objective(self, s: Signals, chosen: Tensor) -> Tensor:
        """``(B,)``: the value of a choice, a ``(B, N)`` bool tensor; at most 1 + alpha."""
        return coverage.covered(self._reach(s), chosen)

    def _reach(self, s: Signals) -> similarity.Rows:
        _, text = s.get(Text)
        like = similarity.dots(normalize(s.features, dim=-1), normalize(text, dim=-1))
        sizes = [self.alpha * _mean(s.valid), _mean(score.valid_text(s, text))]
        sharpness = [
            torch.full_like(sizes[0], 1 / self.temperature),
            torch.full_like(sizes[1], 1 / self.text_temperature),
        ]
        return coverage.calibrated(like, torch.cat(sharpness, 1), torch.cat(sizes, 1), s.valid)


def _mean(candidates: Tensor) -> Tensor:
    """Weights of a mean over ``candidates``."""
    return candidates.float() / candidates.sum(1, keepdim=True).clamp(min=1)
