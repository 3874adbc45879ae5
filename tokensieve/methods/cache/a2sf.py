from dataclasses import dataclass

from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import AccumulatedAttention
from tokensieve.core.options import option
from tokensieve.methods.cache.h2o import H2O


@register_method("a2sf", systems=[375])
@dataclass(frozen=True)
class A2SF(H2O):
    """Accumulated attention that forgets: attention paid t tokens ago weighs ``factor`` to the power t.

    Source: arXiv 2407.20485. Early tokens are seen by more queries than late ones; forgetting makes up for that. With
    ``factor=1`` this is `h2o`. Defaults are ours: a factor of 0.99, and half the budget, ``recent``, for the most recent tokens,
    as in `h2o`; the public code has no factor that it takes unasked, and keeps the last 16. Deviation: as in `h2o`, ``queries``
    of a long prompt stand for all, chosen in proportion to their weights: most of them are the last.
    """

    factor: float = option(
        0.99,
        "by what the weight of attention falls with every token that it is older; 1 forgets nothing",
        above=0,
        hi=1,
    )

    @property
    def needs(self):
        return (AccumulatedAttention(self.factor, self.queries),)
