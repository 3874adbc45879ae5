"""Scales: a residual over grids that grow, coarse first."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from tokensieve.codec.quantizer import Found, straight_through, wholes
from tokensieve.codec.quantizers.product import added
from tokensieve.codec.quantizers.rearranged import Rearranged
from tokensieve.codec.registry import quantizer, register_quantizer


@register_quantizer("scales", kind="RVQ")
class Scales(Rearranged):
    """Residual quantization over scales: coarse grids first, each of what those before left (VAR, arXiv 2404.02905).

    A scale is what is left, averaged to its grid, quantized, and brought back by bicubic interpolation. Deviation from the paper:
    no convolution follows the interpolation.

    Args:
        sides: of the square grids, growing; the last is that of the N = side * side tokens. Indices are ``(B, sum of squares,
            C)``.
        dim: D.
        of: the quantizer's name, one for all scales; ``options`` are its own.
    """

    def __init__(self, *, sides: tuple[int, ...], dim: int, of: str = "vq", **options: Any):
        self.sides = wholes("sides", sides)
        if list(sides) != sorted(set(sides)):
            raise ValueError(f"sides={tuple(sides)}; they must grow")
        made = quantizer(of, **options, **({} if of in ("fsq", "lfq", "bsq") else {"dim": dim}))
        super().__init__(made, places=sides[-1] ** 2, codes=sum(s * s for s in sides), dim=dim)

    def assign_rows(self, x: Tensor, generator: Generator | None) -> Found:
        if self.training and not getattr(self.made, "started", True):
            with torch.no_grad():
                self.made.start(self.made.squash(self._seen(x.detach())), generator)
        total, found = torch.zeros_like(x), []
        for side in self.sides:
            small = resized(x - total, side, "area").flatten(0, 1)
            found.append(self.made.assign(small, generator))
            values = found[-1].values.detach().view(len(x), side * side, -1)
            total = total + resized(values, self.sides[-1], "bicubic")
        indices = [f.indices.view(len(x), side * side, -1) for f, side in zip(found, self.sides, strict=True)]
        return Found(torch.cat(indices, 1), straight_through(total, x), added(found))

    def rows_of(self, indices: Tensor) -> Tensor:
        values = self.made.restore(self.made.table(indices.flatten(0, 1))).view(*indices.shape[:2], -1)
        parts = values.split([s * s for s in self.sides], 1)
        return torch.stack([resized(part, self.sides[-1], "bicubic") for part in parts]).sum(0)

    def set_rows(self, x: Tensor, generator: Generator | None) -> None:
        self.made.set_from(self.made.squash(self._seen(x)), generator)

    def _seen(self, x: Tensor) -> Tensor:
        """``(T, D)``: what all scales would see if each were quantized without error, not the first one's few alone."""
        total, out = torch.zeros_like(x), []
        for side in self.sides:
            small = resized(x - total, side, "area")
            out.append(small.flatten(0, 1))
            total = total + resized(small, self.sides[-1], "bicubic")
        return torch.cat(out)


def resized(x: Tensor, side: int, mode: str) -> Tensor:
    """A square grid ``(B, n * n, D)`` as one of another side; ``mode`` as of torch's ``interpolate``."""
    n = round(x.shape[1] ** 0.5)
    if n == side:
        return x
    square = x.transpose(1, 2).unflatten(2, (n, n))
    return F.interpolate(square, (side, side), mode=mode).flatten(2).transpose(1, 2)
