from dataclasses import dataclass

import torch
from torch import Tensor

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import Keys, Need
from tokensieve.core.options import option
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.parts import budget, score, select


@register_method("dart", systems=[279])
@dataclass(frozen=True)
class DART(Method):
    """Pivot tokens by key norm, then for each pivot in turn the tokens least similar to it: no attention map is needed.

    Source: arXiv 2502.11494. Four visual pivots, of the largest L1 norm of their keys, are kept; four text pivots, of
    the largest L1 norm, only look (none where no text is given). The rest of the budget is split evenly over the
    pivots, and each in turn takes what is left with the smallest cosine similarity of features. Deviations from the
    public code: the budget is exact (the code keeps its visual pivots on top, 68 for 64), pivots take their turn by
    norm and visual first (there, in the order of a Python set), text pivots go by the norm of their embeddings, and
    features are compared without the model's final norm.
    """

    site = "prefill"
    sites = ("prefill", "diffusion")
    pivots: int = option(4, "visual tokens of largest key norm, which stay", lo=1, unit="tokens")
    text_pivots: int = option(4, "text tokens that visual ones are to be unlike, too", lo=0, unit="tokens")

    @property
    def needs(self):
        return (Keys(), Need("text", instead=("features",)))

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        norm = s.metric(self.needs[0]).norm(p=1, dim=-1)
        leads, filled = select.ranked(norm, keep.clamp(max=self.pivots), s.valid)
        chosen = torch.zeros_like(s.valid).scatter_(1, leads, filled)
        pivots = select.take(s.features, leads)
        if s.text is not None:
            heard = score.valid_text(s, s.text)
            looks, ok = select.ranked(s.text.norm(p=1, dim=-1), torch.full_like(keep, self.text_pivots), heard)
            pivots, filled = torch.cat([pivots, select.take(s.text, looks)], 1), torch.cat([filled, ok], 1)
        like = score.cosine(pivots, s.features)
        quota = budget.split(keep - chosen.sum(1), filled)
        for pivot in range(like.shape[1]):
            chosen = chosen | select.top(-like[:, pivot], quota[:, pivot], s.valid & ~chosen)
        return Reduction.keep(chosen)
