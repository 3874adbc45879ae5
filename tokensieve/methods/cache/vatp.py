from dataclasses import dataclass

from torch import Tensor

from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import Values
from tokensieve.core.options import option
from tokensieve.core.signals import Signals
from tokensieve.methods.cache.score_wrappers import Over
from tokensieve.parts import select


@register_method("vatp", systems=[336])
@dataclass(frozen=True)
class VATP(Over):
    """Attention times the length of the value: another method's score, multiplied by the L1 norm of each entry's value.

    Source: arXiv 2406.12335. Works over `h2o` as published, or over any other ``scorer`` whose score is not negative. The first
    ``sinks`` tokens, whose values are short although all attend to them, always stay. Deviation: the public code multiplies
    each step's attention before it adds it up; as an entry's value never changes, the sum is the same.
    """

    small = {"sinks": 2}
    inert = {"options": "options of the method that scorer names"}
    positional = "the first and the most recent tokens stay"
    scorer: str = option("h2o", 'the cache method whose score is multiplied; "" for the attention of the last token')
    sinks: int = option(20, "the first tokens, which always stay", lo=0, unit="tokens")

    @property
    def needs(self):
        return (*self.inner.needs, Values())

    @property
    def min_kept(self) -> int:
        return self.inner.min_kept + self.sinks

    def score(self, s: Signals) -> Tensor:
        rank = self.inner.score(s)
        assert rank is not None
        return rank * s.metric(Values()).abs().sum(-1)

    def always_keep(self, s: Signals, keep: Tensor) -> Tensor:
        always_keep = self.inner.always_keep(s, keep)
        return always_keep | select.first((keep - always_keep.sum(1)).clamp(max=self.sinks), s.valid)
