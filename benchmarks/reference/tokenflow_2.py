"""TokenFlow: one index for what a patch means and for how it looks."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from tokensieve.bench.codec.autoencoder import WIDTH, Autoencoder
from tokensieve.codec import Codes, quantizer

SPACES = ("semantic", "pixels")


class TokenFlow(nn.Module):
    """A frozen teacher's features and pixels, each with an encoder and a codebook, under one index.

    Source: arXiv 2412.03069. The index is the least weighted sum of distances in both spaces (``joint``). Pixels are decoded from
    the pixel codebook, the teacher's features from the semantic one. Deviation: the semantic encoder is one linear map of the
    teacher, which itself stays frozen. With one space alone it is a twin whose index one distance decides: it has that codebook
    only, and everything is decoded from it.

    Args:
        shape: ``(C, H, W)`` of an image; tokens: of it, one for each of the teacher's features.
        features: dimensions of those.
        codes: of the codebook, shared.
        spaces: one of ``SPACES`` or both.
        half: dimensions of a space.
        revive: of the codebook; with 0 it starts at random too.
    """

    def __init__(
        self, shape: tuple[int, int, int], tokens: int, features: int, codes: int, spaces: tuple[str, ...] = SPACES,
        half: int = 8, revive: float = 0.1,
    ):  # fmt: skip
        super().__init__()
        more = {"codes": codes, "kmeans": revive > 0, "revive": revive}
        both = len(spaces) == 2
        self.spaces = spaces
        self.quantizer = quantizer("joint", dims=(half, half), **more) if both else quantizer("vq", dim=half, **more)
        self.frame = Autoencoder(shape, tokens, None)
        self.frame.encoder[-1] = nn.Conv2d(WIDTH, half, 1)
        self.frame.decoder[0] = nn.Conv2d(half, WIDTH, 1)
        self.into = nn.Sequential(nn.LayerNorm(features, elementwise_affine=False), nn.Linear(features, half))
        self.out_of = nn.Linear(half, features)
        self.half = half

    def encode(self, images: Tensor, features: Tensor, generator: Generator | None = None) -> Codes:
        """Codes of images ``(B, C, H, W)`` and the teacher's features ``(B, N, F)``."""
        parts = {"semantic": self.into(features), "pixels": self.frame.latents(images)}
        return self.quantizer(torch.cat([parts[s] for s in SPACES if s in self.spaces], 2), generator=generator)

    def decode(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Images, and the teacher's features."""
        return self.frame.signals(values[..., -self.half :]), self.out_of(values[..., : self.half])

    def loss(self, images: Tensor, features: Tensor, generator: Generator | None = None) -> Tensor:
        codes = self.encode(images, features, generator)
        back, meant = self.decode(codes.values)
        out = (back - images).square().mean() / images.var() + codes.loss
        return out + (meant - features).square().mean() / features.var() if "semantic" in self.spaces else out
