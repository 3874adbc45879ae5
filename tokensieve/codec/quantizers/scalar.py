"""FSQ: each dimension rounded to a few levels."""

from __future__ import annotations

import torch
from torch import Tensor

from tokensieve.codec.quantizer import Quantizer, wholes
from tokensieve.codec.registry import register_quantizer

EDGE = 1e-3
"""How far the bounds reach beyond the outermost levels, as a share of half their span."""


@register_quantizer("fsq", kind="FSQ")
class FSQ(Quantizer):
    """Finite scalar quantization: a dimension is bounded by tanh and rounded to one of its levels (arXiv 2309.15505).

    There is no codebook, nothing to train and no loss. Values lie from -1 to 1. Deviation from the paper: a dimension of 2 levels
    is cut at 0, where the paper's shift would leave nearly all on one side.

    Args:
        levels: of each dimension, at least 2: ``(8, 5, 5, 5)`` are 1,000 codes.
        dim: D, where it is not the number of levels; adds linear maps in and out.
    """

    def __init__(self, *, levels: tuple[int, ...], dim: int | None = None):
        levels = wholes("levels", levels, 2)
        super().__init__(levels, len(levels), dim)
        count = torch.tensor(levels, dtype=torch.float64)
        reach = (count - 1) * (1 + EDGE) / 2
        offset = torch.where(count % 2 == 0, 0.5, 0.0)
        shift = torch.where(count == 2, 0.0, torch.atanh(offset / reach))
        half = count.div(2, rounding_mode="floor")
        # No buffers: whoever casts a model to bfloat16 leaves the bounds as they are.
        self._bounds = tuple(t.float() for t in (reach / half, -offset / half, shift, half))

    def squash(self, x: Tensor) -> Tensor:
        reach, offset, shift, _ = self._on(x)
        return torch.addcmul(offset, torch.tanh(x + shift), reach)

    def nearest(self, u: Tensor) -> Tensor:
        half = self._on(u)[3]
        return (u * half).round_().add_(half).long()

    def table(self, indices: Tensor) -> Tensor:
        half = self._on(indices)[3]
        return (indices - half) / half

    def _on(self, like: Tensor) -> tuple[Tensor, ...]:
        return tuple(t.to(like.device) for t in self._bounds)
