from dataclasses import dataclass

import torch
from torch import Tensor

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.needs import CLSAttention, CLSSimilarity, Values
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.methods.recurring import clip_layer_option
from tokensieve.parts import budget, score, select


@register_method("flowcut", systems=[305])
@dataclass(frozen=True)
class FlowCut(Method):
    """Prunes step by step along the encoder's layers, by a score that every layer adds to; all of it at the handoff.

    Source: arXiv 2505.19536. A layer scores a token by the CLS token's attention to it plus its value's similarity to
    the CLS token's (each as a share of the tokens left), times the L1 norm of its value; the score so far and the
    layer's count half each. At every other layer tokens leave, the more the more concentrated the CLS token's attention
    is; the last ends at the budget. ``encoder_layers`` are those of CLIP-L in front of the one whose output is read,
    counted from the end; scaled in an encoder of another depth. Deviations from the public code: the encoder runs on
    all tokens (a stage between its blocks knows one block only), so it is not made faster and later layers still see
    what the earlier ones let go; value norms take all heads side by side, where the code averages them first; each
    image prunes at its own pace, where there the batch does.
    """

    encoder_layers: tuple[int, ...] = clip_layer_option(
        tuple(range(-24, -2)), "the encoder layers along which tokens leave"
    )

    @property
    def needs(self):
        layers = self.encoder_layers
        return (CLSAttention(*layers, depth=24), CLSSimilarity(*layers, depth=24), Values(*layers, depth=24))

    def score(self, s: Signals) -> Tensor:
        return self._run(s, s.valid.sum(1))[1]

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        return Reduction.keep(self._run(s, keep)[0])

    def _run(self, s: Signals, keep: Tensor) -> tuple[Tensor, Tensor]:
        stay, total = s.valid, None
        for left, layer in zip(reversed(range(len(self.encoder_layers))), self.encoder_layers, strict=True):
            cls, like = (score.per_token(s.get(need, layer)[1]) for need in self.needs[:2])
            flow = (score.normalized(cls, stay) + score.normalized(like, stay)) * s.metric(self.needs[2], layer).norm(
                p=1, dim=-1
            )
            total = flow if total is None else (total + flow) / 2
            if left % 2 == 0:
                stay = select.top(total, budget.concentrate(cls, stay, keep, left), stay)
        assert total is not None
        return stay, torch.where(s.valid, total, 0.0)
