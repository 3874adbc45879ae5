"""TokenSet: a diffusion of count vectors whose total never changes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Generator, Tensor, nn


def fixed_sum(values: Tensor, total: int) -> Tensor:
    """Whole numbers ``(B, K)`` next to ``values``, none below 0, that sum to ``total``, as the values do: the largest fractions
    are rounded up, the first of equals."""
    down = values.clamp(min=0).floor()
    left = total - down.sum(1).long()
    rank = (values - down).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (down + (rank < left[:, None])).long()


class FixedSum(nn.Module):
    """Counts ``(B, K)`` of codes, as many in all as an image has tokens, from noise of the same total.

    Source: arXiv 2503.16425. Between noise (codes drawn alike) and data counts go on a straight line, rounded so that the total
    stays; the model tells the shares of the data's codes. Deviation: a small perceptron in place of a transformer over codes.

    Args:
        codes: K.
        total: tokens of an image.
        fixed: False for the usual diffusion beside it, which rounds every count by itself.
    """

    def __init__(self, codes: int, total: int, fixed: bool = True, width: int = 256):
        super().__init__()
        self.codes, self.total, self.fixed = codes, total, fixed
        self.net = nn.Sequential(
            nn.Linear(codes + 1, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, codes)
        )

    def shares(self, counts: Tensor, time: Tensor) -> Tensor:
        """Log shares ``(B, K)`` of the data's codes, from counts at times ``(B, 1)``, 0 for noise and 1 for data."""
        return self.net(torch.cat([counts.float(), time], 1)).log_softmax(1)

    def noise(self, count: int, generator: Generator | None) -> Tensor:
        return self._drawn(torch.ones(count, self.codes) / self.codes, generator)

    def loss(self, counts: Tensor, generator: Generator | None = None) -> Tensor:
        """Cross-entropy of codes, nats, at drawn times."""
        time = torch.rand(len(counts), 1, generator=generator)
        between = self._rounded(time * counts + (1 - time) * self.noise(len(counts), generator))
        return -(counts / counts.sum(1, keepdim=True) * self.shares(between, time)).sum(1).mean()

    @torch.no_grad()
    def sample(self, count: int, steps: int, generator: Generator | None = None) -> Iterator[Tensor]:
        """Counts ``(count, K)`` int64 from noise to samples, one step at a time."""
        x = self.noise(count, generator)
        yield x
        for i in range(steps):
            share = self.shares(x, torch.full((count, 1), i / steps)).exp()
            aim = self._drawn(share, generator)
            x = self._rounded(x + (aim - x) / (steps - i))
            yield x

    def _drawn(self, share: Tensor, generator: Generator | None) -> Tensor:
        if not self.fixed:
            return torch.poisson(share * self.total, generator=generator).long()
        drawn = torch.multinomial(share, self.total, replacement=True, generator=generator)
        return torch.zeros(share.shape, dtype=torch.int64).scatter_add_(1, drawn, torch.ones_like(drawn))

    def _rounded(self, values: Tensor) -> Tensor:
        return fixed_sum(values, self.total) if self.fixed else values.round().clamp(min=0).long()
