from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import normalize

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import CLSAttention
from tokensieve.core.options import option
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.methods.recurring import encoder_layer_option
from tokensieve.parts import score
from tokensieve.parts.numeric import similarity
from tokensieve.parts.select import coverage


@register_method("scope")
@dataclass(frozen=True)
class SCOPE(Method):
    """Greedily keeps the token whose gain in coverage of all tokens, times its CLS attention, is largest.

    Source: arXiv 2510.24214. A token is covered as well as its most similar kept token covers it, by cosine and by at
    least 0; gains are multiplied by the attention to the power ``alpha``, averaged over heads, at the layer the features
    are taken from (``encoder_layer``). Deviations from the public code: the budget is per image and exact (the code
    divides it by the batch), similarities are those of the features in front of the language model (there, of the
    encoder's), and gains are found lazily; the picks are the same.
    """

    pairs = True
    alpha: float = option(1.0, "the power of attention by which gains in coverage are multiplied", lo=0)
    encoder_layer: int = encoder_layer_option()

    @property
    def needs(self):
        return (CLSAttention(self.encoder_layer),)

    def score(self, s: Signals) -> Tensor:
        return score.attention(s, self.needs[0])

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        # A token of length 0 is covered by none: padding asks for nothing.
        reach = similarity.dots(normalize(s.features, dim=-1) * s.valid[..., None])
        return Reduction.keep(coverage.cover(reach, keep, s.valid, self.score(s).clamp(min=0) ** self.alpha))
