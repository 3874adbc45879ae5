from dataclasses import dataclass

from tokensieve.core.method_registry import register_method
from tokensieve.methods.cache.score_wrappers import Last


@register_method("tova")
@dataclass(frozen=True)
class TOVA(Last):
    """Keeps the tokens to which the last one attends most, averaged over all heads of the layer.

    Source: arXiv 2401.06104. Meant for eviction at every decoded token (``every=1``) as well as behind the prompt. Deviation: the
    last token itself always stays, as in other collections of methods; the paper's code would let it go if it attended
    little to itself.
    """

    unit = "token"
