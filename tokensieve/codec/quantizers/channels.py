"""Channels: a code stands for one channel at all places."""

from __future__ import annotations

from typing import Any

from torch import Generator, Tensor

from tokensieve.codec.quantizer import Found, whole
from tokensieve.codec.quantizers.rearranged import Rearranged
from tokensieve.codec.registry import quantizer, register_quantizer


@register_quantizer("channels", kind="VQ", systems=(165,))
class Channels(Rearranged):
    """Quantizes channels instead of places, so that each code speaks of the whole image (arXiv 2407.11913).

    Args:
        places: N; each channel is a vector of so many values.
        dim: D, and how many codes a row has: indices are ``(B, D, C)``.
        of: the quantizer's name; ``options`` are its own but ``dim``, which is ``places``.
    """

    def __init__(self, *, places: int, dim: int, of: str = "vq", **options: Any):
        made = quantizer(of, **options, **({} if of in ("fsq", "lfq", "bsq") else {"dim": whole("places", places)}))
        if made.width != places:
            raise ValueError(f"places={places}; {of} of these options quantizes {made.width} values")
        super().__init__(made, places=places, codes=dim, dim=dim)

    def assign_rows(self, x: Tensor, generator: Generator | None) -> Found:
        rows, channels = len(x), self.dim
        found = self.made.assign(x.transpose(1, 2).reshape(rows * channels, self.places), generator)
        values = found.values.view(rows, channels, self.places).transpose(1, 2)
        return Found(found.indices.view(rows, channels, -1), values, found.losses)

    def rows_of(self, indices: Tensor) -> Tensor:
        values = self.made.restore(self.made.table(indices.flatten(0, 1)))
        return values.view(len(indices), self.dim, self.places).transpose(1, 2)

    def set_rows(self, x: Tensor, generator: Generator | None) -> None:
        self.made.set_from(self.made.squash(x.transpose(1, 2).flatten(0, 1)), generator)
