from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import LastAttention, PairedText, Text
from tokensieve.core.options import option
from tokensieve.core.plan import descent, register_plan
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.core.stage import Stage
from tokensieve.methods.recurring import at_option, first_option
from tokensieve.parts import budget, score, select
from tokensieve.parts.numeric import similarity
from tokensieve.parts.select import coverage


@register_method("catp", systems=[141])
@dataclass(frozen=True)
class CATP(Method):
    """For prompts with worked examples: keeps of each image what stands for all of it and fits the text it is paired with.

    Source: arXiv 2508.07871, its first stage: greedy facility location over the projected features, plus ``alignment``
    (the paper's lambda 1) times each kept token's similarity to the mean of the text between this image and the next;
    similarities are cosines brought to [0, 1]. As a system this stage keeps ``first`` times the mean that is asked for, and
    ``catp-l`` the rest at the share ``at`` of the depth (the paper's layer 6 of 32; each stage there removes half of what
    goes). Deviations: none in the selection; the greedy search skips gains that cannot win.
    """

    pairs = True
    alignment: float = option(0.7, "what similarity to the paired text weighs beside coverage (lambda 1)", lo=0)
    first: float = first_option(2.0)
    at: float = at_option(3 / 16)

    @property
    def needs(self):
        return (Text, PairedText)

    def score(self, s: Signals) -> Tensor:
        _, text = s.get(Text)
        valid = score.valid_text(s, text)
        pair = valid if s.paired is None else valid & s.paired.bool()
        pair = torch.where(pair.any(1, keepdim=True), pair, valid)
        return (1 + cosine_similarity(s.features, score.mean_row(text, pair)[:, None], dim=-1)) / 2

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        like, targets = similarity.dots(normalize(s.features, dim=-1)), s.valid[:, None] / 2
        fit = self.alignment * self.score(s)
        return Reduction.keep(coverage.cover(lambda place: (1 + like(place)) * targets, keep, s.valid, bonus=fit))


@register_plan("catp")
def catp(method: CATP, keep: budget.Budget) -> list[Stage]:
    """Behind the encoder, then inside the language model."""
    return [Stage(method, budget.times(keep, method.first)), *descent(CATPL(), keep, (method.at,))]


@register_method("catp-l", systems=[141])
@dataclass(frozen=True)
class CATPL(Method):
    """The second stage of ``catp``: keeps what the prompt's last token attends to and is similar to.

    Source: arXiv 2508.07871. The score is the last token's attention plus ``similarity`` (the paper's lambda 2) times the
    cosine with its state. Deviations: the paper takes the growth of that attention since the layer before (one layer is
    read here), the mean state of the question with its image (here the last token's, which has read them), ranks all
    examples' tokens together (here each image keeps its share), and prunes the question's image one layer later by its
    similarity to what is left of the examples.
    """

    site = "prefill"
    sites = ("prefill",)
    similarity: float = option(0.6, "what similarity to the last token weighs beside its attention (lambda 2)", lo=0)

    @property
    def needs(self):
        return (LastAttention, Text)

    def score(self, s: Signals) -> Tensor:
        _, text = s.get(Text)
        valid = score.valid_text(s, text)
        alike = cosine_similarity(s.features, score.last_row(text, valid)[:, None], dim=-1)
        return score.last_row(*score.text_rows(s, LastAttention)) + self.similarity * alike

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        return Reduction.keep(select.top(self.score(s), keep, s.valid))
