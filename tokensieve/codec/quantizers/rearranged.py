"""What quantizers share whose codes do not stand for one token each: whole rows are quantized, or left out."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from tokensieve.codec.codes import Codes
from tokensieve.codec.quantizer import Found, Quantizer, checked, finite, whole


class Rearranged(Quantizer):
    """Quantizes rows ``(B, places, D)`` as a whole, by another quantizer.

    Args:
        made: that quantizer.
        places: N.
        codes: how many codes a row has; ``indices`` are ``(B, codes, C)``, and so is ``mask`` of what is returned.
        dim: D.
    """

    aligned = False
    reencodes = False

    def __init__(self, made: Quantizer, places: int, codes: int, dim: int):
        if made.dim != made.width or not made.aligned:
            raise ValueError(f"of={made.config.get('name')!r} has maps of its own, or codes that stand for no token")
        super().__init__(made.levels, whole("dim", dim))
        self.made, self.places, self.count = made, places, codes
        self.loss_names, self.posthoc = made.loss_names, made.posthoc

    def forward(self, z: Tensor, mask: Tensor | None = None, generator: Generator | None = None) -> Codes:
        """As of every quantizer; ``mask`` must hold whole rows."""
        mask = checked(z, mask, self.dim)
        if z.shape[1] != self.places:
            raise ValueError(f"z of shape {tuple(z.shape)}; it must be (B, {self.places}, {self.dim})")
        there = mask.all(1)
        if bool((there != mask.any(1)).any()):
            raise ValueError(
                "mask leaves out a part of a row; these codes stand for rows as a whole: True or False for all of one"
            )
        x = z[there].float()
        if not finite(x):
            raise ValueError("z is not finite; mend it, or leave the row out by mask=. Nothing was changed")
        indices = torch.full((len(z), self.count, len(self.levels)), -1, device=z.device)
        values = z.new_zeros(z.shape)
        losses = {name: x.sum() for name in self.loss_names} if self.training and not len(x) else {}
        if len(x):
            with torch.autocast(z.device.type, enabled=False):
                found = self.assign_rows(x, generator)
            indices[there], values[there], losses = found.indices, found.values.to(z.dtype), found.losses
        return Codes(indices, values, there[:, None].expand(-1, self.count), self.levels, losses)

    def lookup(self, indices: Tensor) -> Tensor:
        self.check_indices(indices)
        if indices.dim() != 3 or indices.shape[1] != self.count:
            raise ValueError(
                f"indices of shape {tuple(indices.shape)}; they must be (B, {self.count}, {len(self.levels)})"
            )
        there = indices[..., 0].amin(1) >= 0
        out = torch.zeros(len(indices), self.places, self.dim, device=indices.device)
        if bool(there.any()):
            out[there] = self.rows_of(indices[there])
        return out

    def neighbours(self, indices: Tensor, generator: Generator | None = None) -> Tensor:
        return self.made.neighbours(indices, generator)

    @torch.no_grad()
    def fit(self, z: Tensor, mask: Tensor | None = None, generator: Generator | None = None) -> Rearranged:
        mask = checked(z, mask, self.dim)
        x = z[mask.all(1)].float()
        if not finite(x):
            raise ValueError("z is not finite; nothing was changed")
        if len(x):
            self.set_rows(x, generator)
        return self

    def assign_rows(self, x: Tensor, generator: Generator | None) -> Found:
        """Indices ``(B, codes, C)`` and values of rows ``(B, places, D)``, B at least 1."""
        raise NotImplementedError

    def rows_of(self, indices: Tensor) -> Tensor:
        """Values ``(B, places, D)`` of indices ``(B, codes, C)``."""
        raise NotImplementedError

    def set_rows(self, x: Tensor, generator: Generator | None) -> None:
        """What :meth:`fit` does, with rows."""
