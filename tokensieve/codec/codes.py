"""Codes: what every quantizer returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tokensieve.codec.usage import Usage, usage


@dataclass(frozen=True)
class Codes:
    """Tokens as indices, and the values that stand for them.

    Attributes:
        indices: ``(B, N, C)`` int64, C components a token; -1 where there is no token.
        values: ``(B, N, D)`` in the dtype of what was quantized, 0 where there is no token: what ``lookup`` gives, with a
            gradient that goes straight through to what was quantized.
        mask: ``(B, N)`` bool, True where there is a token.
        levels: how many codes each component has.
        losses: scalars by name, weighted: "commitment", "codebook", "entropy_sample", "entropy_batch"; empty outside of training.
    """

    indices: Tensor
    values: Tensor
    mask: Tensor
    levels: tuple[int, ...]
    losses: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def loss(self) -> Tensor:
        """The sum of the losses; 0 where there are none."""
        return sum(self.losses.values(), start=torch.zeros((), device=self.values.device))

    @property
    def usage(self) -> Usage:
        """How much of the codebook these tokens use."""
        return usage(self.indices, self.levels)
