"""Tied: a codebook that follows the embedding table of a language model."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from tokensieve.codec.quantizer import number
from tokensieve.codec.quantizers.nearest import VQ
from tokensieve.codec.registry import register_quantizer


@register_quantizer("tied", kind="VQ", systems=(211,))
class Tied(VQ):
    """The nearest row of a codebook that follows an embedding table by moving average (UniCode, arXiv 2403.09072).

    Call :meth:`follow` once a step with the table; images then cost a language model no codebook of their own.

    Args:
        codes: rows of the table.
        dim: D.
        momentum: how much of the codebook a step keeps.
        commitment: weight of the loss that draws tokens to their codes.
    """

    followed: Tensor

    def __init__(self, *, codes: int, dim: int, momentum: float = 0.99, commitment: float = 0.25):
        super().__init__(codes=codes, dim=dim, commitment=commitment, kmeans=False, revive=0.0)
        self.momentum = number("momentum", momentum, 0, 1)
        self.register_buffer("followed", torch.tensor(False))

    @torch.no_grad()
    def follow(self, table: Tensor) -> None:
        """Move towards an embedding table ``(codes, dim)``; the first call takes it as it is.

        Raises:
            ValueError: another shape, or values that are not finite.
        """
        if table.shape != self.codebook.shape or not bool(table.isfinite().all()):
            raise ValueError(
                f"a table of shape {tuple(table.shape)}; it must be {tuple(self.codebook.shape)}, and finite"
            )
        new = table.to(self.codebook.dtype)
        self.codebook.copy_(self.codebook.lerp(new, 1 - self.momentum) if bool(self.followed) else new)
        self.followed.fill_(True)

    def learn(self, u: Tensor, indices: Tensor, values: Tensor, generator: Generator | None) -> None:
        """Nothing: the language model trains the table."""

    def set_from(self, u: Tensor, generator: Generator | None) -> None:
        """Nothing, likewise."""
