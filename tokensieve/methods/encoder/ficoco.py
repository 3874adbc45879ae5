from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import Keys, Need, TextAttention
from tokensieve.core.options import option
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.methods.recurring import SHARE
from tokensieve.parts import score, select
from tokensieve.parts.merge import transform

QUANTILE = 0.998


@register_method("ficoco", systems=[357])
@dataclass(frozen=True)
class FiCoCo(Method):
    """Filters redundant tokens out, correlates each with the kept ones, and compresses it into the most correlated.

    Source: arXiv 2411.17686, the vision variant FiCoCo-V. Filter: redundancy is ``spatial`` times a token's mean
    attention to all tokens minus the rest times the CLS token's attention to it (both scaled to unit length over
    the tokens), and the most redundant token of every 2 x 2 window of the grid counts double. Correlate: a token's
    attention to the kept ones, above its ``quantile``. Compress: kept tokens average themselves with the shares
    they receive. Values are the public code's. Deviations from it: attention between tokens is that of the keys
    with each other, since queries are not kept; targets are kept tokens only (the code shifts indices onto wrong
    ones), in source order, with no state between calls and any batch; without attention by a CLS token, that which
    a token receives serves, or none.
    """

    site = "encoder"
    sites = ("encoder", "handoff", "prefill")
    pairs = True
    spatial: float = option(0.65, "what attention to all tokens weighs beside the CLS token's", **SHARE)
    quantile: float = option(
        QUANTILE, "above which quantile of a token's correlations with slots they count", lo=0, hi=1
    )

    @property
    def needs(self):
        return (Keys(), Need("cls_attention", (), ("received_attention", "features")))

    def score(self, s: Signals) -> Tensor:
        name, task = s.get(self.needs[1])
        relevance = torch.zeros_like(s.weight) if name == "features" else score.per_token(task)
        redundancy = _redundancy(s.metric(self.needs[0]), relevance, s.valid, self.spatial)
        return -(redundancy if s.grid is None else _spread(redundancy, s.grid, s.valid))

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        keys = s.metric(self.needs[0])
        chosen = select.top(self.score(s), keep, s.valid)
        matrix = transform.assign(keys, chosen, keys.shape[2] ** -0.5)
        matrix = transform.strongest(matrix, chosen, self.quantile)
        return Reduction.soft(transform.compress(matrix, chosen, s.weight * s.valid), chosen)


@register_method("ficoco-l", systems=[357])
@dataclass(frozen=True)
class FiCoCoL(Method):
    """As ``ficoco``, inside the language model, with the text's attention as the measure of what the task needs.

    Source: arXiv 2411.17686, the language variant FiCoCo-L; a plan with a stage of each is its joint variant. Filter:
    redundancy is ``spatial`` times a token's mean attention to the visual tokens minus the rest times the text's
    attention to it. Correlate: ``direct`` times its attention to the kept tokens, plus the rest times what passes
    between them through the text. Values are the public code's. Deviations from it: attention between visual tokens
    is that of the features with each other; what a token passes to the text is read from the text's attention to it
    (under a causal mask the code's is zero); kept tokens become averages, as in the vision variant, where the code
    leaves sums.
    """

    site = "prefill"
    sites = ("handoff", "prefill")
    pairs = True
    spatial: float = option(0.6, "what attention to all visual tokens weighs beside the text's", **SHARE)
    direct: float = option(0.6, "what a token's own attention weighs beside that through the text", **SHARE)
    quantile: float = option(
        QUANTILE, "above which quantile of a token's correlations with slots they count", lo=0, hi=1
    )

    @property
    def needs(self):
        return (TextAttention,)

    def score(self, s: Signals) -> Tensor:
        relevance = score.mean_row(*score.text_rows(s, TextAttention))
        return -_redundancy(s.features, relevance, s.valid, self.spatial)

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        chosen = select.top(self.score(s), keep, s.valid)
        x = s.features.detach()
        matrix = transform.assign(x, chosen, x.shape[2] ** -0.5)
        through = transform.through(*score.text_rows(s, TextAttention), chosen)
        matrix = matrix.mul_(self.direct).baddbmm_(*through, alpha=1 - self.direct)
        matrix = transform.strongest(matrix, chosen, self.quantile)
        return Reduction.soft(transform.compress(matrix, chosen, s.weight * s.valid), chosen)


def _redundancy(x: Tensor, relevance: Tensor, valid: Tensor, spatial: float) -> Tensor:
    # The mean of a token's dot products with all tokens is its dot product with their mean.
    like = (x * score.mean_row(x, valid)[:, None]).sum(2)
    both = (normalize(t.masked_fill(~valid, 0.0), dim=1) for t in (like, relevance))
    like, relevance = both
    return spatial * like - (1 - spatial) * relevance


def _spread(redundancy: Tensor, grid: tuple[int, int], valid: Tensor) -> Tensor:
    """The most redundant token of each window made more so, so that every region gives some up."""
    window, number = select.windows(valid, grid, 2)
    one = torch.ones(len(valid), number, dtype=torch.long, device=valid.device)
    more = torch.where(redundancy > 0, redundancy * 2, redundancy / 2)
    return torch.where(select.top_of_each(redundancy, one, window, valid), more, redundancy)
