from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import normalize

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import Need
from tokensieve.core.options import option
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.parts import score, select
from tokensieve.parts.merge import transform


@register_method("token-transforming", systems=[62])
@dataclass(frozen=True)
class TokenTransforming(Method):
    """Multiplies the tokens by one explicit many-to-many matrix: every token goes, in shares, to all slots like it.

    Source: arXiv 2506.05709. Slots are the most informative tokens, by CLS attention (mean received attention, or
    similarity to the mean token, where there is none). A token's shares are the softmax over slots of its cosine with
    them divided by ``temperature``; slots are means of what they receive. As the temperature falls to zero it
    becomes merging into the nearest slot; `parts.transform.pruning` and `merging` are the matrices of the older
    methods. Deviations: the public repository holds no code; the temperature is ours.
    """

    site = "encoder"
    sites = ("encoder", "handoff", "prefill")
    temperature: float = option(
        0.05, "of the softmax over slots; near 0 every token joins its nearest", above=0, unit="cosine"
    )

    @property
    def needs(self):
        return (Need("cls_attention", (), ("received_attention", "features")),)

    def score(self, s: Signals) -> Tensor:
        name, value = s.get(self.needs[0])
        if name != "features":
            return score.per_token(value)
        return (value * score.mean_row(value, s.valid)[:, None]).sum(2)

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        chosen = select.top(self.score(s), keep, s.valid)
        matrix = transform.assign(normalize(s.features.detach(), dim=-1), chosen, 1 / self.temperature)
        matrix = transform.means(matrix.mul_((s.weight * s.valid)[:, None]))
        whole = (chosen == s.valid).all(1)
        if bool(whole.any()):
            matrix[whole] = transform.pruning(chosen)[whole].to(matrix)
        return Reduction.soft(matrix, chosen)
