"""Scenes of 32 pixels: one shape in one colour on a plain background, anywhere, in any size."""

from __future__ import annotations

import torch
from torch import Tensor

SIZE = 32
SHAPES = ("disc", "square", "triangle", "ring")
COLOURS = {"red": (0.9, 0.2, 0.2), "green": (0.2, 0.75, 0.3), "blue": (0.25, 0.4, 0.95)}
CLASSES = tuple(f"{colour} {shape}" for shape in SHAPES for colour in COLOURS)
SPLITS = {"train": 0, "test": 1}


def draw(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Scenes of the classes ``labels`` ``(B,)``: ``(B, 3, 32, 32)`` in [-1, 1], smooth at the edges."""

    def uniform(low: float, high: float, width: int = 1) -> Tensor:
        return low + (high - low) * torch.rand(len(labels), width, 1, 1, generator=generator)

    radius = uniform(6.0, 11.0)
    x, y = (uniform(0.0, 1.0) * (SIZE - 2 * radius) + radius for _ in range(2))
    step = torch.arange(SIZE) + 0.5
    dx, dy = step[None, None, None] - x, step[None, None, :, None] - y
    far = (dx**2 + dy**2).sqrt()
    # Below 0 inside; the triangle stands on its base.
    edges = torch.cat(
        [
            far - radius,
            torch.maximum(dx.abs(), dy.abs()) - 0.85 * radius,
            torch.maximum(dy - 0.6 * radius, 0.87 * dx.abs() - 0.5 * dy - 0.5 * radius),
            (far - 0.75 * radius).abs() - 0.25 * radius,
        ],
        1,
    )
    shape, colour = labels // len(COLOURS), labels % len(COLOURS)
    ink = (0.5 - edges[torch.arange(len(labels)), shape]).clamp(0, 1)[:, None]
    tint = torch.tensor(list(COLOURS.values()))[colour][..., None, None] + uniform(-0.08, 0.08, 3)
    ground = uniform(0.1, 0.9) + uniform(-0.05, 0.05, 3)
    return 2 * (ink * tint + (1 - ink) * ground).clamp(0, 1) - 1


def batch(split: str, seed: int, start: int, count: int) -> tuple[Tensor, Tensor]:
    """Scenes ``start`` and on of a stream, in turns of all classes, and their labels; a function of its arguments."""
    generator = torch.Generator().manual_seed(hash((SPLITS[split], seed, start, count)) % 2**63)
    labels = (start + torch.arange(count)) % len(CLASSES)
    return draw(labels, generator), labels
