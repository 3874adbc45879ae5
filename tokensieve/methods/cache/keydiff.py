from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import normalize

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register
from tokensieve.core.needs import Keys
from tokensieve.core.signals import Signals
from tokensieve.parts import score


@register("keydiff")
@dataclass(frozen=True)
class KeyDiff(Method):
    """Keeps the entries whose keys are least like the mean direction of their head's keys.

    Source: arXiv 2504.15364. Needs no attention. The paper evicts block by block while reading a long prompt; in a prefill in
    chunks, so does this. Deviation: none.
    """

    site = "cache"
    sites = ("cache",)
    favours = ("unlike",)

    @property
    def needs(self):
        return (Keys(),)

    def score(self, s: Signals) -> Tensor:
        keys = s.metric(self.needs[0])
        return -score.cosine(score.mean_row(normalize(keys, dim=-1), s.valid)[:, None], keys)[:, 0]
