"""Distortion: how near reconstructions are, signal by signal, and as sets of features."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

ROUNDS = 1000
"""Bootstrap rounds."""
SPLITS = 50
FEW = 200
"""Test signals below which a feature distance is told to be of few."""


def psnr(test: Tensor, back: Tensor, peak: float) -> Tensor:
    """``(n,)``: peak signal-to-noise ratio of each signal, dB; an exact copy has 100."""
    error = (test - back).square().flatten(1).mean(1)
    return (10 * torch.log10(peak**2 / error.clamp(min=1e-10 * peak**2))).double()


def ssim(test: Tensor, back: Tensor) -> Tensor:
    """``(n,)``: structural similarity of images ``(n, C, H, W)`` from 0 to 1 (Wang et al. 2004).

    Gaussian windows of 11 pixels and deviation 1.5, the mean over channels and places; images below 11 pixels are one window.
    """
    size = min(11, *test.shape[2:])
    line = torch.exp(-(torch.arange(size) - (size - 1) / 2).square() / (2 * 1.5**2))
    window = (line[:, None] * line / line.sum() ** 2).expand(test.shape[1], 1, size, size)

    def mean(x: Tensor) -> Tensor:
        return F.conv2d(x, window, groups=x.shape[1])

    a, b = mean(test), mean(back)
    aa, bb, ab = mean(test**2) - a**2, mean(back**2) - b**2, mean(test * back) - a * b
    like = (2 * a * b + 0.01**2) * (2 * ab + 0.03**2) / ((a**2 + b**2 + 0.01**2) * (aa + bb + 0.03**2))
    return like.flatten(1).mean(1).double()


def kernel_distance(x: Tensor, y: Tensor, seed: int = 0) -> tuple[float, float, float]:
    """Unbiased kernel distance of features ``(n, D)`` of originals and of their reconstructions, and its 95% bootstrap interval.

    The squared maximum mean discrepancy under the kernel ``(x . y / D + 1)^3`` (KID, arXiv 1801.01401), times 1000. Pairs of a
    signal with itself are left out, so that it is 0 in the mean for equal distributions, and may fall below.
    """
    h = _pairs(x.double(), y.double())
    n = len(h)
    draw = torch.randint(n, (ROUNDS, n), generator=torch.Generator().manual_seed(seed))
    weight = torch.zeros(ROUNDS, n, dtype=torch.float64).scatter_add_(
        1, draw, torch.ones(ROUNDS, n, dtype=torch.float64)
    )
    total = ((weight @ h) * weight).sum(1) / (weight.sum(1) ** 2 - weight.square().sum(1))
    low, high = torch.quantile(total, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return 1000 * float(h.sum()) / (n * (n - 1)), 1000 * low, 1000 * high


def noise_floor(x: Tensor, seed: int = 0) -> float:
    """What the distance of halves of the originals reaches by chance: its 95th percentile over random halves, times 1000."""
    generator, half = torch.Generator().manual_seed(seed), len(x) // 2
    if half < 2:
        return math.nan
    found = []
    for _ in range(SPLITS):
        order = torch.randperm(len(x), generator=generator)
        a, b = x[order[:half]].double(), x[order[half : 2 * half]].double()
        found.append(float(_pairs(a, b).sum()) / (half * (half - 1)))
    return 1000 * float(torch.tensor(found).quantile(0.95))


def _pairs(x: Tensor, y: Tensor) -> Tensor:
    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    xy = kernel(x, y)
    return (kernel(x, x) + kernel(y, y) - xy - xy.T).fill_diagonal_(0)


def features(kind: str, rate: int | None) -> tuple[str, Callable[[Tensor], Tensor]]:
    """What a feature distance is of, in words, and the function of signals that gives it ``(n, D)``."""
    if kind == "speech":
        return "mean and deviation of log-mel bands", lambda signals: log_mel(signals, rate or 16000)
    from tokensieve import testbed

    tower = testbed.load()[0].model.vision_tower
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758)))

    @torch.no_grad()
    def of(images: Tensor) -> Tensor:
        out = []
        for part in images.split(8):
            large = F.interpolate(part, (336, 336), mode="bicubic").clamp(0, 1)
            out.append(tower(pixel_values=(large - mean) / std).last_hidden_state[:, 1:].mean(1))
        return F.layer_norm(torch.cat(out), out[0].shape[1:])

    return "packaged testbed encoder, mean of patches", of


def log_mel(signals: Tensor, rate: int, bands: int = 40, window: int = 400, hop: int = 160) -> Tensor:
    """``(n, 2 * bands)``: over the frames of each waveform the mean and the deviation of its log-mel bands."""
    wave = signals.flatten(1)
    power = torch.stft(wave, 512, hop, window, torch.hann_window(window), return_complex=True).abs().square()

    def mel(hertz: Tensor) -> Tensor:
        return 2595 * torch.log10(1 + hertz / 700)

    at = mel(torch.linspace(0, rate / 2, power.shape[1]))
    edges = torch.linspace(0, float(mel(torch.tensor(rate / 2.0))), bands + 2)
    rise = (at - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - at) / (edges[2:] - edges[1:-1])[:, None]
    log = (torch.minimum(rise, fall).clamp(min=0) @ power + 1e-6).log()
    return torch.cat([log.mean(2), log.std(2)], 1)
