"""Baselines that nobody trains: PCA, fewer pixels, JPEG and WebP, at the same bits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tokensieve.codec import quantizer

MOST_BITS = 8
"""Bits of one coefficient or value at most."""


@dataclass(frozen=True)
class Pca:
    """Transform coding: principal components of patches, bits shared out by variance, coefficients in bins of equal probability.

    A coefficient gets another bit while it has the largest expected error left (a bit quarters it), until the budget is spent.

    Attributes:
        patch: its height and width; mean, basis: of patches; bits: of each coefficient; deviation: of each coefficient.
    """

    patch: tuple[int, int]
    mean: Tensor
    basis: Tensor
    bits: tuple[int, ...]
    deviation: Tensor

    def reconstruct(self, signals: Tensor) -> Tensor:
        """Signals encoded and decoded."""
        flat = _patches(signals, self.patch)
        wanted = (flat - self.mean) @ self.basis
        got = torch.zeros_like(wanted)
        for i, bits in enumerate(self.bits):
            if bits:
                got[..., i] = _binned(wanted[..., i] / self.deviation[i], bits) * self.deviation[i]
        return _unpatched(got @ self.basis.T + self.mean, self.patch, signals.shape)

    def spent(self, shape: tuple[int, ...]) -> int:
        """Bits of a signal ``(C, H, W)``."""
        return sum(self.bits) * (shape[1] // self.patch[0]) * (shape[2] // self.patch[1])


def pca(train: Tensor, bits: int) -> Pca:
    """PCA of so many bits a signal, or a few less, fitted to the training part.

    The size of the patch is chosen on a fifth of it that components have not seen: those of whole signals fit any few.
    """
    aside = torch.arange(len(train)) % 5 == 0
    errors = {}
    for patch in _sides(train.shape):
        made = _fitted(train[~aside], patch, bits)
        if made is not None:
            errors[patch] = float((made.reconstruct(train[aside][:64]) - train[aside][:64]).square().mean())
    if not errors:
        raise ValueError(f"bits={bits} are too few for a signal; PCA needs 1 at least")
    out = _fitted(train, min(errors, key=lambda patch: errors[patch]), bits)
    assert out is not None
    return out


def _sides(shape: torch.Size) -> Iterator[tuple[int, int]]:
    _, _, height, width = shape
    size = max(height, width)
    for n in (2**i for i in range(1, size.bit_length())):
        side = (min(n, height), min(n, width))
        if height % side[0] == 0 and width % side[1] == 0 and side[0] * side[1] <= 1024:
            yield side
    yield height, width


def _fitted(train: Tensor, patch: tuple[int, int], bits: int) -> Pca | None:
    flat = _patches(train, patch).flatten(0, 1)
    each = bits // (train[0, 0].numel() // (patch[0] * patch[1]))
    if each < 1 or len(flat) < 2:
        return None
    mean = flat.mean(0)
    count = min(len(flat) - 1, flat.shape[1], 512)
    draw = torch.Generator().manual_seed(0)
    rows = flat[torch.randperm(len(flat), generator=draw)[:20_000]] - mean
    _, values, basis = torch.linalg.svd(rows, full_matrices=False)
    variance, basis = values[:count].square() / len(rows), basis[:count].T
    left, spent = variance.clone(), [0] * count
    for _ in range(each):
        at = int(left.argmax())
        if float(left[at]) <= 0:
            break
        spent[at] += 1
        left[at] = left[at] / 4 if spent[at] < MOST_BITS else 0
    kept = max((i + 1 for i, b in enumerate(spent) if b), default=1)
    return Pca(patch, mean, basis[:, :kept], tuple(spent[:kept]), variance[:kept].sqrt().clamp(min=1e-9))


def _binned(x: Tensor, bits: int) -> Tensor:
    made = quantizer("quantile", bins=2**bits, dim=1).eval()
    return made(x.reshape(1, -1, 1)).values.view_as(x)


def _patches(signals: Tensor, patch: tuple[int, int]) -> Tensor:
    """``(B, patches, values)``."""
    return F.unfold(signals, patch, stride=patch).transpose(1, 2)


def _unpatched(flat: Tensor, patch: tuple[int, int], shape: torch.Size) -> Tensor:
    return F.fold(flat.transpose(1, 2), tuple(shape[2:]), patch, stride=patch)


@dataclass(frozen=True)
class Fewer:
    """Fewer values: signals made smaller by area, rounded to a few bits, and brought back by bicubic interpolation."""

    size: tuple[int, int]
    bits: int
    low: float
    high: float

    def reconstruct(self, signals: Tensor) -> Tensor:
        """Signals encoded and decoded."""
        small = F.interpolate(signals, self.size, mode="area")
        top = 2**self.bits - 1
        held = ((small - self.low) / (self.high - self.low) * top).round().clamp(0, top) / top
        back = F.interpolate(held, signals.shape[2:], mode="bicubic")
        return back * (self.high - self.low) + self.low

    def spent(self, shape: tuple[int, ...]) -> int:
        """Bits of a signal."""
        return shape[0] * math.prod(self.size) * self.bits


def fewer(train: Tensor, bits: int) -> Fewer:
    """The best of smaller sizes and coarser values that so many bits allow, by the training part."""
    _, channels, height, width = train.shape
    part, made = train[:64], []
    for deep in range(2, MOST_BITS + 1):
        count = bits // (channels * deep)
        side = (min(math.isqrt(count * height // width), height), 0) if height > 1 else (1, 0)
        if side[0]:
            size = (side[0], min(count // side[0], width))
            if size[1]:
                made.append(Fewer(size, deep, float(train.min()), float(train.max())))
    if not made:
        raise ValueError(f"bits={bits} are too few for one value of {channels} channels")
    return min(made, key=lambda one: float((one.reconstruct(part) - part).square().mean()))


def image_file(image: Tensor, kind: str, most: float) -> tuple[Tensor, int]:
    """The best file of an image ``(3, H, W)`` within ``most`` bytes, or its smallest: decoded, and its bytes.

    Args:
        kind: "JPEG" or "WEBP".
    """
    from PIL import Image

    picture = Image.fromarray((image.permute(1, 2, 0) * 255).round().clamp(0, 255).byte().numpy())
    more = {"optimize": True} if kind == "JPEG" else {"method": 6}

    def written(quality: int) -> bytes:
        buffer = BytesIO()
        picture.save(buffer, kind, quality=quality, **more)
        return buffer.getvalue()

    low, high, best = 1, 100, written(1)
    while low < high:
        middle = (low + high + 1) // 2
        data = written(middle)
        if len(data) <= most:
            low, best = middle, data
        else:
            high = middle - 1
    with Image.open(BytesIO(best)) as opened:
        back = np.asarray(opened.convert("RGB"), dtype=np.float32) / 255
    return torch.from_numpy(back).permute(2, 0, 1), len(best)
