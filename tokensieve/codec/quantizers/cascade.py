"""Cascade: frozen anchors, trained refinement."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokensieve.codec.quantizers.nearest import VQ
from tokensieve.codec.registry import register_quantizer


@register_quantizer("cascade", kind="VQ", systems=(182,))
class Cascade(VQ):
    """Codes are k-means anchors, frozen, plus a trained refinement each; tokens choose by anchors (UniCode^2, arXiv 2506.20214).

    Since anchors never move, as many codes are used after training as before it.

    Args:
        codes: K.
        dim: D.
        commitment: weight of the loss that draws tokens to their codes.
    """

    def __init__(self, *, codes: int, dim: int, commitment: float = 0.25):
        super().__init__(codes=codes, dim=dim, commitment=commitment, revive=0.0)
        self.refinement = nn.Parameter(torch.zeros(codes, dim))
        self.loss_names = ("commitment", "codebook")

    reencodes = False

    def table(self, indices: Tensor) -> Tensor:
        return super().table(indices) + self.refinement[indices[:, 0]].float()

    def losses(self, u: Tensor, values: Tensor) -> dict[str, Tensor]:
        return super().losses(u, values) | {"codebook": F.mse_loss(values, u.detach())}

    def learn(self, u: Tensor, indices: Tensor, values: Tensor, generator: torch.Generator | None) -> None:
        """Nothing: anchors stay."""
