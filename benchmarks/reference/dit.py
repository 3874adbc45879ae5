"""A small class-conditional diffusion transformer on digits of 8 x 8, whose mixer, MLP and density of tokens can be swapped."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.descent import descend

CLASSES, HELD_OUT = 10, 297


@dataclass(frozen=True)
class Shape:
    """Sizes: each of the ``side`` x ``side`` pixels is a token."""

    side: int = 8
    width: int = 48
    layers: int = 4
    heads: int = 4
    mlp: int = 96


Part = Callable[[Shape], nn.Module]
"""Makes a part of a layer, which maps tokens ``(B, N, D)`` of a square grid to as many."""


@dataclass(frozen=True)
class Density:
    """Layers ``first`` to ``last`` (not itself) run on fewer tokens.

    Attributes:
        sides: from times ``(B,)``, 0 for a picture and 1 for noise, to the side of each row's grid in those layers.
    """

    first: int
    last: int
    sides: Callable[[Tensor], Tensor]


class Attention(nn.Module):
    """Softmax attention of some tokens ``(B, N, D)`` to others, by default themselves."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.heads = shape.heads
        self.q, self.k, self.v, self.o = (nn.Linear(shape.width, shape.width) for _ in range(4))

    def forward(self, x: Tensor, to: Tensor | None = None) -> Tensor:
        to = x if to is None else to
        q, k, v = (
            m(t).unflatten(2, (self.heads, -1)).transpose(1, 2) for m, t in ((self.q, x), (self.k, to), (self.v, to))
        )
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def mlp(shape: Shape) -> nn.Module:
    return nn.Sequential(nn.Linear(shape.width, shape.mlp), nn.GELU(), nn.Linear(shape.mlp, shape.width))


class Layer(nn.Module):
    """A mixer and an MLP, each behind a norm that the condition shifts and scales, and beside a residual path that it gates."""

    def __init__(self, shape: Shape, mixer: Part, feed: Part):
        super().__init__()
        self.norm = nn.LayerNorm(shape.width, elementwise_affine=False)
        self.mixer, self.feed = mixer(shape), feed(shape)
        self.tuned = nn.Linear(shape.width, 6 * shape.width)
        nn.init.zeros_(self.tuned.weight)
        nn.init.zeros_(self.tuned.bias)

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        shift, scale, gate, shift2, scale2, gate2 = self.tuned(F.silu(told))[:, None].chunk(6, 2)
        x = x + gate * self.mixer(self.norm(x) * (1 + scale) + shift)
        return x + gate2 * self.feed(self.norm(x) * (1 + scale2) + shift2)


class DiT(nn.Module):
    """From noisy pictures ``(B, 8, 8)``, times ``(B,)`` and labels ``(B,)`` to the velocity noise - picture, ``(B, 8, 8)``.

    Args:
        mixers: the mixer of each layer; feed: the MLP of all.
        density: where and when fewer tokens run; None: all do everywhere.
    """

    def __init__(
        self, shape: Shape = Shape(), mixers: Part | list[Part] = Attention, feed: Part = mlp, density: Density | None = None
    ):  # fmt: skip
        super().__init__()
        self.shape, self.density = shape, density
        self.enter, self.leave = nn.Linear(1, shape.width), nn.Linear(shape.width, 1)
        self.place = nn.Parameter(0.1 * torch.randn(shape.side**2, shape.width))
        self.time = nn.Sequential(nn.Linear(32, shape.width), nn.SiLU(), nn.Linear(shape.width, shape.width))
        self.label = nn.Embedding(CLASSES, shape.width)
        every = mixers if isinstance(mixers, list) else [mixers] * shape.layers
        self.layers = nn.ModuleList(Layer(shape, mixer, feed) for mixer in every)
        self.norm = nn.LayerNorm(shape.width)

    def forward(self, x: Tensor, time: Tensor, label: Tensor) -> Tensor:
        angle = 1000 * time[:, None] * torch.exp(-torch.arange(16) / 16 * math.log(10000))
        told = self.time(torch.cat([angle.sin(), angle.cos()], 1)) + self.label(label)
        y = self.enter(x.flatten(1)[..., None]) + self.place
        if self.density is None:
            for layer in self.layers:
                y = layer(y, told)
        else:
            y = self._thinned(y, told, self.density, self.density.sides(time))
        return self.leave(self.norm(y)).view_as(x)

    def _thinned(self, y: Tensor, told: Tensor, how: Density, sides: Tensor) -> Tensor:
        """Rows whose grids are as large go together; what the layers in between add is spread over all tokens."""
        out = torch.empty_like(y)
        for side in sides.unique().tolist():
            rows = (sides == side).nonzero()[:, 0]
            z, of = y[rows], told[rows]
            for i, layer in enumerate(self.layers):
                if i == how.first:
                    before = few = pooled(z, side)
                if how.first <= i < how.last:
                    few = layer(few, of)
                else:
                    z = layer(z, of)
                if i == how.last - 1:
                    z = z + spread(few - before, self.shape.side)
            out[rows] = z
        return out


def pooled(x: Tensor, side: int) -> Tensor:
    """Tokens of a square grid, averaged to one of ``side`` x ``side``."""
    return F.adaptive_avg_pool2d(_grid(x), side).flatten(2).transpose(1, 2)


def spread(x: Tensor, side: int) -> Tensor:
    """The reverse, by bilinear interpolation."""
    return F.interpolate(_grid(x), (side, side), mode="bilinear").flatten(2).transpose(1, 2)


def _grid(x: Tensor) -> Tensor:
    side = math.isqrt(x.shape[1])
    return x.transpose(1, 2).unflatten(2, (side, side))


def data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Digits ``(n, 8, 8)`` in [-1, 1] and labels: 1,500 to train on, 297 that are held out."""
    digits = load_digits()
    x, y = torch.tensor(digits.images, dtype=torch.float32) / 8 - 1, torch.tensor(digits.target)
    return x[:-HELD_OUT], y[:-HELD_OUT], x[-HELD_OUT:], y[-HELD_OUT:]


def errors(model: DiT, x: Tensor, y: Tensor, time: Tensor, noise: Tensor) -> Tensor:
    """``(B,)``: the mean squared error of the velocity of each picture."""
    at = time[:, None, None]
    return (model((1 - at) * x + at * noise, time, y) - (noise - x)).square().mean((1, 2))


def fit(model: DiT, steps: int, seed: int = 0, batch: int = 32, rate: float = 2e-3) -> DiT:
    """Trained by steps, every draw a function of the seed; parts may have a ``loss`` of their own behind a pass."""
    x, y, *_ = data()
    g = torch.Generator().manual_seed(seed)

    def loss(step: int) -> Tensor:
        pick = torch.randint(len(x), (batch,), generator=g)
        time, noise = torch.rand(batch, generator=g), torch.randn(batch, *x.shape[1:], generator=g)
        error = errors(model, x[pick], y[pick], time, noise).mean()
        return error + sum(m.loss for m in model.modules() if isinstance(getattr(m, "loss", None), Tensor))

    descend(model.train().parameters(), loss, steps, rate, clip=1.0)
    return model.eval()


@torch.no_grad()
def held_out(model: DiT, draws: int = 8) -> Tensor:
    """``(297,)``: the error of each held-out digit, a mean over draws of time and noise that are the same for every model."""
    *_, x, y = data()
    g = torch.Generator().manual_seed(1)
    found = [
        errors(model, x, y, torch.rand(len(x), generator=g), torch.randn(x.shape, generator=g)) for _ in range(draws)
    ]
    return torch.stack(found).mean(0)


@torch.no_grad()
def sample(model: DiT, labels: Tensor, steps: int = 20, seed: int = 0) -> Tensor:
    """Digits of classes, from noise by equal steps."""
    x = torch.randn(len(labels), model.shape.side, model.shape.side, generator=torch.Generator().manual_seed(seed))
    for i in range(steps, 0, -1):
        x = x - model(x, torch.full((len(x),), i / steps), labels) / steps
    return x.clamp(-1, 1)
