"""WeTok: a decoder that draws what codes do not say."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Generator, Tensor, nn

from tokensieve.bench.codec.autoencoder import WIDTH, Autoencoder
from tokensieve.codec import Quantizer


class Generative(nn.Module):
    """The decoder of a trained autoencoder made generative: channels of noise beside the values of codes.

    Source: arXiv 2508.05599, whose second stage trains such a decoder against a discriminator. Deviation: it is trained by the
    energy score, which is least where samples are distributed as images are given their codes; nothing is adversarial.

    Args:
        made: the autoencoder; its encoder and quantizer stay as they are, its decoder goes on from its weights.
        noise: channels.
    """

    def __init__(self, made: Autoencoder, noise: int = 8):
        super().__init__()
        assert isinstance(made.quantizer, Quantizer)
        self.made, self.noise = made.requires_grad_(False), noise
        self.decoder = deepcopy(made.decoder).requires_grad_(True)
        first = nn.Conv2d(made.quantizer.dim + noise, WIDTH, 1)
        first.weight.data[:, : made.quantizer.dim] = made.decoder[0].weight.data
        first.bias.data.copy_(made.decoder[0].bias.data)
        self.decoder[0] = first

    def decode(self, values: Tensor, generator: Generator | None = None) -> Tensor:
        """A drawn signal for each of ``(B, N, D)``."""
        noise = torch.randn(*values.shape[:2], self.noise, generator=generator)
        x = torch.cat([values, noise], 2).transpose(1, 2).unflatten(2, self.made.grid)
        return self.decoder(x) + 0.5

    def loss(self, signals: Tensor, generator: Generator | None = None) -> Tensor:
        """The energy score of two draws."""
        with torch.no_grad():
            codes = self.made.eval().encode(signals)
        assert not isinstance(codes, Tensor)
        one, two = (self.decode(codes.values, generator) for _ in range(2))

        def far(a: Tensor, b: Tensor) -> Tensor:
            return (a - b).flatten(1).norm(dim=1)

        return ((far(one, signals) + far(two, signals) - far(one, two)) / 2).mean()
