"""Quantile: the dimensions of a finished model binned one by one, without training."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from tokensieve.codec.quantizer import Found, Quantizer, whole
from tokensieve.codec.registry import register_quantizer


@register_quantizer("quantile", kind="FSQ", systems=(237,))
class Quantile(Quantizer):
    """Post-training quantization: each dimension in bins of equal Gaussian probability (TokenBridge, arXiv 2503.16430).

    :meth:`fit` takes each dimension's mean and deviation; in training, the first batch does. A value is the mean of a normal
    distribution within its bin.

    Args:
        bins: of each dimension, at least 2.
        dim: D, and the number of components.
    """

    posthoc = True
    mean: Tensor
    deviation: Tensor
    started: Tensor

    def __init__(self, *, bins: int, dim: int):
        super().__init__((whole("bins", bins, 2),) * whole("dim", dim), dim)
        for name, value in (
            ("mean", torch.zeros(dim)),
            ("deviation", torch.ones(dim)),
            ("started", torch.tensor(False)),
        ):
            self.register_buffer(name, value)
        share = torch.arange(bins + 1, dtype=torch.float64) / bins
        edges = torch.special.ndtri(share)
        density = torch.exp(-edges.square() / 2) / (2 * torch.pi) ** 0.5
        self._edges, self._means = edges[1:-1].float(), ((density[:-1] - density[1:]) * bins).float()

    def squash(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.deviation

    def restore(self, values: Tensor) -> Tensor:
        return values * self.deviation + self.mean

    def nearest(self, u: Tensor) -> Tensor:
        return torch.bucketize(u.contiguous(), self._edges.to(u.device))

    def table(self, indices: Tensor) -> Tensor:
        return self._means.to(indices.device)[indices]

    def assign(self, x: Tensor, generator: Generator | None) -> Found:
        if self.training and not self.started:
            with torch.no_grad():
                self.set_from(self.squash(x), generator)
        return super().assign(x, generator)

    def set_from(self, u: Tensor, generator: Generator | None) -> None:
        """Mean and deviation of points that the present ones have scaled."""
        x = self.restore(u)
        self.mean.copy_(x.mean(0))
        self.deviation.copy_(x.std(0, correction=0).clamp(min=1e-6))
        self.started.fill_(True)
