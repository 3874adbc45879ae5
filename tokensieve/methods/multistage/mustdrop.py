from dataclasses import dataclass

import torch
from torch import Tensor

from tokensieve.core.method import CacheMethod, Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import CLSAttention, Ranking, TextAttention, Visual, WindowAttention
from tokensieve.core.options import option
from tokensieve.core.plan import descent, register_plan
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.core.stage import Stage
from tokensieve.methods.recurring import BUDGET, at_option, encoder_layer_option, first_option
from tokensieve.parts import budget, score, select
from tokensieve.parts.select import groups


@register_method("mustdrop", systems=[53])
@dataclass(frozen=True)
class MustDrop(Method):
    """Merges neighbours that are alike, window by window, and protects the tokens to which the CLS token attends most.

    Source: arXiv 2411.10803, its vision-encoding stage; ``mustdrop-l`` is the prefill stage. Windows of ``window`` x
    ``window`` tokens are merged into their last one, the most alike first. The ``protect`` share of the budget goes to
    key tokens, which stay as they are in both stages (the same ranking protects in each, so what is a key at the smaller
    budget was one before). As a system this stage keeps ``first`` times the mean that is asked for, and the second prunes
    at the shares ``at`` of the depth (the public code's layers 2, 6, 10 and 14 of 32). Deviations: budgets are exact,
    where the paper sets thresholds (windows above a similarity of 0.8, key tokens 8% of the image); where merging every
    window leaves too many, merged tokens go by CLS attention; merging happens after the encoder instead of after its
    first block. The third stage, ``mustdrop-c``, bounds what the caches hold of each image by the same mean.
    """

    positional = "windows of the grid are merged"

    window: int = option(3, "the side of the windows in which tokens are merged", lo=1, unit="tokens")
    protect: float = option(0.25, "what goes to key tokens", **BUDGET)
    first: float = first_option(2.0)
    at: tuple[float, ...] = at_option((1 / 16, 3 / 16, 5 / 16, 7 / 16))
    encoder_layer: int = encoder_layer_option()

    @property
    def needs(self):
        return (CLSAttention(self.encoder_layer),)

    def score(self, s: Signals) -> Tensor:
        return score.attention(s, self.needs[0])

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        saliency, place = self.score(s), torch.arange(s.n, device=s.device)
        keys = select.top(saliency, budget.fraction_of(keep, self.protect), s.valid)
        group, number = select.windows(s.valid & ~keys, s.grid, self.window)
        last = select.last_of_each(group, number).gather(1, group.clamp(min=0))
        alike = groups.cohesion(s.features, group, number).gather(1, group.clamp(min=0))
        heads = select.top(saliency, keep - keys.sum(1), (last == place) & (group >= 0))
        chosen = keys | heads
        chosen = chosen | select.top(-alike, keep - chosen.sum(1), s.valid & ~chosen)
        joins = (group >= 0) & heads.gather(1, last.clamp(min=0))
        return Reduction.merge(chosen, last.masked_fill(~joins, -1), s.weight)


@register_plan("mustdrop")
def mustdrop(method: MustDrop, keep: budget.Budget) -> list[Stage]:
    """Behind the encoder, inside the language model, and in its cache."""
    inside = descent(MustDropL(method.protect), keep, method.at)
    return [Stage(method, budget.times(keep, method.first)), *inside, Stage(MustDropC(), keep, every=1)]


@register_method("mustdrop-l", systems=[53])
@dataclass(frozen=True)
class MustDropL(Method):
    """The prefill stage of ``mustdrop``: keeps what the text as a whole, or any one of its tokens, attends to, and the keys.

    Source: arXiv 2411.10803. A token's score is the larger of two: the text's summed attention to it, and the largest
    attention of any text token to it, each in units of its mean over the tokens. Keys are those of the first stage.
    Deviation: the paper drops a token below a threshold of both; here both thresholds rise together until the budget is
    met.
    """

    site = "prefill"
    sites = ("prefill",)
    protect: float = option(0.25, "what goes to key tokens", **BUDGET)

    @property
    def needs(self):
        return (TextAttention, Ranking)

    def score(self, s: Signals) -> Tensor:
        rows, text_valid = score.text_rows(s, TextAttention)
        rows = rows * text_valid[..., None]
        return score.normalized(rows.sum(1, dtype=torch.float64).to(rows.dtype), s.valid).maximum(
            score.normalized(rows.amax(1), s.valid)
        )

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        keys = select.top(score.last_row(*score.text_rows(s, Ranking)), budget.fraction_of(keep, self.protect), s.valid)
        return Reduction.keep(keys | select.top(self.score(s), keep - keys.sum(1), s.valid & ~keys))


@register_method("mustdrop-c", systems=[53])
@dataclass(frozen=True)
class MustDropC(CacheMethod):
    """The decoding stage of ``mustdrop``: a bounded cache, from which the visual entries go that the outputs attend to least.

    Source: arXiv 2411.10803. ``keep`` counts visual entries of each image. Text stays; with ``every=1`` each token that is
    decoded takes the place of a visual entry, so that a layer never holds more than behind the prompt, as long as visual
    entries are left. They rank by the attention of the last ``window`` tokens: at the end of the prompt the question's, from then
    on more and more the outputs'. Deviation: the public code evicts once, and from early layers' caches what later layers
    have dropped; here each layer ranks its own entries, at every step.
    """

    unit = "token"
    visual = True
    positional = "the text stays"
    window: int = option(8, "the last tokens, whose attention ranks the entries", lo=1, unit="tokens")

    @property
    def needs(self):
        return (WindowAttention(self.window), Visual)

    def score(self, s: Signals) -> Tensor:
        return score.per_token(s.get(self.needs[0])[1])

    def always_keep(self, s: Signals, keep: Tensor) -> Tensor:
        return select.last(keep, s.valid & (s.get(Visual)[1] <= 0))
