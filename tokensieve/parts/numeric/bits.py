"""Bits: numbers of a few bits each, really packed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

BITS = (1, 2, 4, 8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes below ``2 ** bits``, ``(..., D)``, as bytes, ``(..., D * bits / 8)`` rounded up; bits: 1, 2, 4 or 8."""
    each = 8 // bits
    parts = pad(codes.to(torch.uint8), (0, -codes.shape[-1] % each)).unflatten(-1, (-1, each))
    out = parts[..., 0].clone()
    for i in range(1, each):
        out |= parts[..., i] << (i * bits)
    return out


def unpack(packed: Tensor, bits: int, width: int) -> Tensor:
    """Codes ``(..., width)`` back from :func:`pack`."""
    parts = [packed >> shift & (2**bits - 1) for shift in range(0, 8, bits)]
    return torch.stack(parts, -1).flatten(-2)[..., :width]


@dataclass(frozen=True)
class Packed:
    """Vectors ``(B, N, D)`` in few bits.

    Attributes:
        codes: ``(B, N, D * bits / 8)`` bytes.
        scale, low: the step and the least value of codes, one for each channel, ``(B, 1, D)``, or for each vector, ``(B, N, 1)``.
        channel: ``(B, 1, D)``, what channels are multiplied with; None for nothing.
    """

    codes: Tensor
    scale: Tensor
    low: Tensor
    channel: Tensor | None
    bits: int
    width: int

    @classmethod
    def by_channel(cls, x: Tensor, bits: int) -> Packed:
        """Each channel between its least and its greatest value over the N vectors (which must be no padding)."""
        return cls._of(x, bits, 1, None)

    @classmethod
    def by_vector(cls, x: Tensor, bits: int) -> Packed:
        """Each vector between its least and greatest value, once channels are divided by the root of their greatest: else a
        few large channels would leave the others no step."""
        channel = x.abs().amax(1, keepdim=True).sqrt()
        return cls._of(x / torch.where(channel > 0, channel, 1.0), bits, 2, channel)

    @classmethod
    def _of(cls, x: Tensor, bits: int, axis: int, channel: Tensor | None) -> Packed:
        low, high = x.amin(axis, keepdim=True), x.amax(axis, keepdim=True)
        scale = (high - low) / (2**bits - 1)
        codes = (x - low).div_(torch.where(scale > 0, scale, 1.0)).round_().clamp_(0, 2**bits - 1)
        return cls(pack(codes, bits), scale, low, channel, bits, x.shape[2])

    def open(self) -> Tensor:
        """The vectors, ``(B, N, D)``."""
        x = torch.addcmul(self.low, unpack(self.codes, self.bits, self.width).to(self.low.dtype), self.scale)
        return x if self.channel is None else x * self.channel

    def planes(self) -> list[Tensor]:
        """Codes as float32, ``(B, N, D * bits / 8)`` each: those of the first channel of every byte, of the second, ..."""
        most = 2**self.bits - 1
        return [(self.codes >> shift & most).float() for shift in range(0, 8, self.bits)]

    def rows(self, change: Callable[[Tensor, int], Tensor]) -> Packed:
        """With every tensor of it changed along its rows."""
        channel = None if self.channel is None else change(self.channel, 0)
        codes, scale, low = (change(x, 0) for x in (self.codes, self.scale, self.low))
        return replace(self, codes=codes, scale=scale, low=low, channel=channel)
