"""DualToken: pixels coded from a shallow layer of an encoder, meaning from its deep one."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from tokensieve.bench.codec.autoencoder import WIDTH, Autoencoder, ResidualBlock
from tokensieve.codec import Codes, quantizer


class DualToken(nn.Module):
    """One encoder, two depths: residual codebooks of the shallow one for pixels, of the deep one for a teacher's features.

    Source: arXiv 2503.14324. Deviation: the encoder is trained from nothing, and the teacher is another network; the paper's
    is a text-aligned encoder whose own deep features are kept. ``shared=True`` is what it is compared with: one residual
    codebook of as many bits at the deep layer, trained by both losses.

    Args:
        shape: ``(C, H, W)`` of an image; tokens: of it; features: dimensions of the teacher's at each of them.
        codes: of a stage; stages: of each depth.
        half: dimensions of a depth.
        options: as of ``vq``.
    """

    def __init__(
        self, shape: tuple[int, int, int], tokens: int, features: int, codes: int, stages: int, half: int = 8,
        shared: bool = False, **options: float,
    ):  # fmt: skip
        super().__init__()
        self.shared, self.half = shared, half
        self.quantizer = (
            quantizer("residual", stages=2 * stages, dim=half, codes=codes, **options)
            if shared
            else quantizer("depths", dims=(half, half), codes=codes, stages=stages, **options)
        )
        self.frame = Autoencoder(shape, tokens, None)
        self.frame.encoder[-1] = nn.Identity()
        self.frame.decoder[0] = nn.Conv2d(half, WIDTH, 1)
        self.deeper = nn.Sequential(ResidualBlock(), ResidualBlock())
        self.ends = nn.ModuleList(nn.Conv2d(WIDTH, half, 1) for _ in range(2))
        self.meaning = nn.Linear(half, features)

    def encode(self, images: Tensor, generator: Generator | None = None) -> Codes:
        shallow = self.frame.encoder(images - 0.5)
        deep = self.deeper(shallow)
        ends = [deep] if self.shared else [shallow, deep]
        z = torch.cat([end(x) for end, x in zip(self.ends, ends, strict=False)], 1)
        return self.quantizer(z.flatten(2).transpose(1, 2), generator=generator)

    def meant(self, values: Tensor) -> Tensor:
        """The part of values that speaks of meaning, ``(B, N, half)``."""
        return values[..., -self.half :]

    def decode(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Images, and the teacher's features."""
        return self.frame.signals(values[..., : self.half]), self.meaning(self.meant(values))

    def loss(self, images: Tensor, features: Tensor, generator: Generator | None = None) -> Tensor:
        codes = self.encode(images, generator)
        back, meant = self.decode(codes.values)
        error = (back - images).square().mean() / images.var() + (meant - features).square().mean() / features.var()
        return error + codes.loss
