"""Instella-T2I: images as a line of binary tokens that stand for no place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor, nn

from tokensieve.codec import Codes, Quantizer

WIDTH, HEADS, LAYERS = 64, 4, 2


def stack(layers: int = LAYERS) -> nn.TransformerEncoder:
    """Pre-norm transformer blocks of :data:`WIDTH`."""
    layer = nn.TransformerEncoderLayer(
        WIDTH, HEADS, 2 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)


def learned(*shape: int) -> nn.Parameter:
    return nn.Parameter(0.02 * torch.randn(*shape))


class OneDimensional(nn.Module):
    """Images ``(B, C, side, side)`` to ``tokens`` codes and back: queries read the patches, blank patches read the codes.

    Source: arXiv 2506.21022 (the shape is that of TiTok, arXiv 2406.07550); its tokens are binary vectors: ``lfq`` as
    quantizer. Deviation: squared error alone, no discriminator, no text.

    Args:
        side: of the image, in pixels; channels; patch: its side.
        tokens: how many queries.
        quantizer: of each token.
        ordered: whether a token's position is told to the decoder; without it codes are a set.
    """

    def __init__(self, side: int, channels: int, patch: int, tokens: int, quantizer: Quantizer, ordered: bool = True):
        super().__init__()
        places = (side // patch) ** 2
        self.quantizer, self.grid = quantizer, side // patch
        self.patches = nn.Conv2d(channels, WIDTH, patch, patch)
        self.places, self.queries, self.blank = (learned(n, WIDTH) for n in (places, tokens, places))
        self.order = learned(tokens, WIDTH) if ordered else None
        self.encoder, self.decoder = stack(), stack()
        self.into, self.out_of = nn.Linear(WIDTH, quantizer.dim), nn.Linear(quantizer.dim, WIDTH)
        self.pixels = nn.ConvTranspose2d(WIDTH, channels, patch, patch)

    def encode(self, images: Tensor, generator: Generator | None = None) -> Codes:
        x = self.patches(images - 0.5).flatten(2).transpose(1, 2) + self.places
        x = self.encoder(torch.cat([x, self.queries.expand(len(x), -1, -1)], 1))
        return self.quantizer(self.into(x[:, -len(self.queries) :]), generator=generator)

    def decode(self, values: Tensor) -> Tensor:
        """Images of ``(B, N, D)``; without an order N may be any number, and the order of tokens says nothing."""
        tokens = self.out_of(values)
        tokens = tokens if self.order is None else tokens + self.order
        x = self.decoder(torch.cat([self.blank.expand(len(values), -1, -1), tokens], 1))[:, : len(self.blank)]
        return self.pixels(x.transpose(1, 2).unflatten(2, (self.grid, self.grid))) + 0.5

    def loss(self, images: Tensor, generator: Generator | None = None) -> Any:
        codes = self.encode(images, generator)
        return (self.decode(codes.values) - images).square().mean() / (images.var() + 1e-6) + codes.loss
