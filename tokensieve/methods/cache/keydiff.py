from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import normalize

from tokensieve.core.method import CacheMethod
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import Keys
from tokensieve.core.signals import Signals
from tokensieve.parts import score


@register_method("keydiff")
@dataclass(frozen=True)
class KeyDiff(CacheMethod):
    """Keeps the entries whose keys are least like the mean direction of their head's keys.

    Source: arXiv 2504.15364. Needs no attention. The paper evicts block by block while reading a long prompt; in a prefill in
    chunks, so does this. Deviation: none.
    """

    favours = ("unlike",)

    @property
    def needs(self):
        return (Keys(),)

    def score(self, s: Signals) -> Tensor:
        keys = s.metric(self.needs[0])
        return -score.cosine(score.mean_row(normalize(keys, dim=-1), s.valid)[:, None], keys)[:, 0]
