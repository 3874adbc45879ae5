"""FlexDiT: bottom layers that pool, a middle on few tokens, a dense top, and more tokens the nearer a picture is."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.reference.dit import Attention, Density, DiT, Shape


class Pooling(nn.Module):
    """In the place of attention, each token gets the mean of all: at the bottom, attention is nearly even anyway."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.value, self.out = nn.Linear(shape.width, shape.width), nn.Linear(shape.width, shape.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.value(x.mean(1, keepdim=True))).expand_as(x)


def flexdit(shape: Shape = Shape(), sides: tuple[int, ...] = (4, 5, 6)) -> DiT:  # noqa: B008 (it is frozen)
    """The first layer pools, the last one is dense, and those between run on grids of ``sides``, from the smallest on where noise
    is largest.

    Source: arXiv 2412.06028. Deviations: what the sparse layers add is interpolated back and added to the dense tokens, without
    layers of its own for that, so that all tokens at every step are the dense model's; times change the density in a few
    equal parts.
    """

    def at(time: Tensor) -> Tensor:
        return torch.tensor(sides)[((1 - time) * len(sides)).long().clamp(0, len(sides) - 1)]

    return DiT(shape, [Pooling, *[Attention] * (shape.layers - 1)], density=Density(1, shape.layers - 1, at))


def uniform(side: int, shape: Shape = Shape()) -> DiT:  # noqa: B008
    """All layers on the same grid in all steps: what it is to be better than."""
    return DiT(shape, density=Density(0, shape.layers, lambda time: torch.full((len(time),), side)))
