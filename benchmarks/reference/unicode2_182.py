"""UniCode^2: features of a frozen encoder in a large codebook, under an adapter."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from tokensieve.codec import Quantizer


class Adapter(nn.Module):
    """Features ``(B, N, F)`` through a linear map into a quantizer and back, with a label told from the mean of the values.

    Source: arXiv 2506.20214, whose quantizer is ``cascade``: anchors by k-means of the features, frozen, and a refinement of
    each. Deviation: labels stand in for the language model that the paper trains with it.

    Args:
        features: F, also of the quantizer, so that the map can begin as the identity.
        made: the quantizer.
        labels: how many.
    """

    def __init__(self, features: int, made: Quantizer, labels: int):
        super().__init__()
        self.quantizer = made
        self.into, self.out_of = nn.Linear(features, features), nn.Linear(features, features)
        for layer in (self.into, self.out_of):
            nn.init.eye_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.told = nn.Linear(features, labels)

    @torch.no_grad()
    def anchor(self, features: Tensor, generator: Generator) -> None:
        """Set what is set from data: all features at once."""
        self.quantizer.fit(self.into(features), generator=generator)

    def loss(self, features: Tensor, labels: Tensor, generator: Generator | None = None) -> Tensor:
        codes = self.quantizer(self.into(features), generator=generator)
        error = (self.out_of(codes.values) - features).square().mean() / features.var()
        return error + nn.functional.cross_entropy(self.told(codes.values.mean(1)), labels) + codes.loss
