from dataclasses import dataclass

import torch
from torch import Tensor

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import ReceivedAttention
from tokensieve.core.options import option
from tokensieve.core.reduction import Reduction
from tokensieve.core.signal_table import signal
from tokensieve.core.signals import MissingSignal, Signals
from tokensieve.methods.recurring import encoder_layer_option
from tokensieve.parts import score, select
from tokensieve.parts.select import groups

MODES = ("rank", "row")


@register_method("fopru", systems=[50])
@dataclass(frozen=True)
class FoPru(Method):
    """Keeps the tokens that receive most attention in the encoder, one by one or by whole rows of the grid.

    Source: arXiv 2411.14164. ``mode`` is "rank" (all tokens against each other) or "row" (rows of the grid by their mean
    attention, best first; of the last one that the budget reaches, its best tokens). Tokens keep their order.
    Deviations from the public code: attention is always averaged over queries (the code takes the mean over keys where
    that varies more), and a budget that is no multiple of a row is met exactly.
    """

    mode: str = option("rank", "whether tokens stay one by one or by rows of the grid", choices=MODES)
    encoder_layer: int = encoder_layer_option()

    @property
    def needs(self):
        return (ReceivedAttention(self.encoder_layer),)

    def score(self, s: Signals) -> Tensor:
        return score.attention(s, self.needs[0])

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        if self.mode == "rank":
            return Reduction.keep(select.top(self.score(s), keep, s.valid))
        if s.grid is None:
            raise MissingSignal(
                f"fopru's mode 'row' needs the tokens' grid; pass {signal('grid').how}, or use mode='rank'"
            )
        high, wide = s.grid
        row = (torch.arange(s.n, device=s.device) // wide).expand(s.batch, -1)
        held = select.group_sizes(row, s.valid, high)
        mean = groups.sums(self.score(s), row, s.valid, high) / held
        count = groups.filled(keep, mean.nan_to_num(nan=-torch.inf), held)
        return Reduction.keep(select.top_of_each(self.score(s), count, row, s.valid))
