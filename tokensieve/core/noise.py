"""Noise that a row draws from its own contents."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor


def noise(features: Tensor, valid: Tensor | None, seed: int) -> Tensor:
    """``(B, N)`` uniform noise in [0, 1), 0 at padding, from features ``(B, N, D)`` and ``valid`` ``(B, N)`` bool; None where
    there is no padding.

    The same row draws the same noise in any batch, under any padding and in any precision; different rows draw different
    noise. Of the contents counts the mean magnitude, to four digits: rounding in a model does not change the draw.
    """
    size = torch.linalg.vector_norm(features.detach().float(), ord=1, dim=2)
    if valid is None:
        mean = size.double().sum(1, keepdim=True) / features.shape[1]
        place = torch.arange(1, features.shape[1] + 1, device=size.device)
    else:
        mean = torch.where(valid, size, 0.0).double().sum(1, keepdim=True) / valid.sum(1, keepdim=True)
        place = valid.long().cumsum(1)
    contents = (mean.clamp(min=1e-30).log() * 4096).round().long()
    row = scrambled(contents + _salt(seed))
    draw = scrambled(row + place * 0x1E3779B97F4A7C15)
    out = (draw >> 20 & 0xFFFFFF).float() / 2**24
    return out if valid is None else torch.where(valid, out, 0.0)


@cache
def _salt(seed: int) -> int:
    return int(scrambled(torch.tensor(seed)))


def scrambled(x: Tensor) -> Tensor:
    """Every bit of a 64-bit number spread over all others: the finalizer of SplitMix64, whose products wrap around."""
    for factor in (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15):
        x = (x ^ (x >> 31 & 0x1FFFFFFFF)) * factor
    return x ^ (x >> 32 & 0xFFFFFFFF)
