from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import Text
from tokensieve.core.options import option
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.parts import score
from tokensieve.parts.select import segments


@register_method("vcc", systems=[385])
@dataclass(frozen=True)
class Vcc(Method):
    """Pools a sequence into segments of 1, 2, 4, ... neighbours, short where the tokens that matter look, long elsewhere.

    Source: arXiv 2305.04241, without its training. The VIP tokens are those of the text; a segment is halved where they attend to
    the mean of its tokens, from the longest segments (``coarse`` times the budget of them, at most) to the shortest. At a
    site the pooled tokens go on to all later layers; :func:`around` runs one layer on them and restores the
    sequence, as the paper does in every layer. Deviations: halves instead of the public code's fixed sizes of blocks;
    attention is a dot product of states where no queries are given.
    """

    site = "prefill"
    sites = ("handoff", "prefill")
    proportional = True
    positional = "segments are runs of tokens"
    coarse: float = option(
        0.5, "how many of the longest segments there may be, of the budget", above=0, hi=1, unit="share"
    )

    @property
    def needs(self):
        return (Text,)

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        eyes = s.get(Text)[1]
        start = segments.refine(eyes, score.valid_text(s, eyes), s.features, keep, s.valid, self.coarse)
        return Reduction.merge(start, segments.begins(start, s.valid), s.weight)


def around(layer: Callable[[Tensor], Tensor], x: Tensor, step: Reduction) -> Tensor:
    """A layer run on pooled tokens: each token of ``x``, ``(B, N, D)``, takes the change of the one it was pooled into.

    Args:
        layer: maps ``(B, M, D)`` to the same shape.
    """
    pooled = step.apply(x)
    return x + step.restore(layer(pooled) - pooled)
