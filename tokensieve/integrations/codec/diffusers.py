"""Image autoencoders of diffusers: VQModel with its codes, AutoencoderKL and its kin without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokensieve.codec.tokenizer import register_adapter
from tokensieve.extras import Lazy

diffusers: Any = Lazy("diffusers", "diffusion")


class Diffusers:
    """An autoencoder of diffusers as a tokenizer of images ``(B, 3, H, W)`` from 0 to 1.

    Args:
        model: anything with diffusers' ``encode`` and ``decode``. Where it has a codebook (``model.quantize``) its indices are
            the codes, otherwise the mean of its latent distribution goes through as it is, and no bits are told.
    """

    def __init__(self, model: Any):
        self.model = model.eval()
        quantize = getattr(model, "quantize", None)
        self.levels: tuple[int, ...] = () if quantize is None else (int(quantize.n_e),)

    @torch.no_grad()
    def encode(self, signals: Tensor) -> Tensor:
        """Indices ``(B, N, 1)``, or latents ``(B, C, h, w)``."""
        held = self.model.encode(2 * signals - 1)
        latents = held.latents if hasattr(held, "latents") else held.latent_dist.mode()
        self._grid = tuple(latents.shape[2:])
        if not self.levels:
            return latents
        indices = self.model.quantize(latents)[2][2]
        return indices.reshape(len(signals), -1, 1).long()

    @torch.no_grad()
    def decode(self, encoded: Tensor) -> Tensor:
        """Images; of indices whose grid is that of the images encoded last."""
        if encoded.dtype != torch.int64:
            return self.model.decode(encoded).sample / 2 + 0.5
        shape = (len(encoded), *self._grid, self.model.quantize.vq_embed_dim)
        values = self.model.quantize.get_codebook_entry(encoded.flatten(), shape)
        return self.model.decode(values, force_not_quantize=True).sample / 2 + 0.5

    def neighbours(self, indices: Tensor, generator: torch.Generator) -> Tensor:
        """The codes nearest to others ``(T, 1)``."""
        from tokensieve.codec.search import nearest

        points = self.model.quantize.embedding.weight.detach().float()
        return nearest(points[indices[:, 0]], points, skip=indices[:, 0])[:, None]


@register_adapter("diffusers")
def load(path: str) -> Diffusers:
    """An autoencoder of diffusers from a folder or a hub name; its ``config.json`` says of which class it is.

    Raises:
        ValueError: diffusers has no such class.
    """
    name = diffusers.AutoModel.load_config(path).get("_class_name", "")
    cls = getattr(diffusers, name, None)
    if cls is None:
        raise ValueError(f"{path}: diffusers has no class {name!r}")
    return Diffusers(cls.from_pretrained(Path(path) if Path(path).is_dir() else path))
