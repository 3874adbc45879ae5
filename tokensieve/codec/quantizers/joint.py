"""Joint: two spaces, one index."""

from __future__ import annotations

import torch
from torch import Tensor

from tokensieve.codec.quantizer import number, wholes
from tokensieve.codec.quantizers.nearest import VQ
from tokensieve.codec.registry import register_quantizer


@register_quantizer("joint", kind="VQ", systems=(2,))
class Joint(VQ):
    """One index into two codebooks: the least weighted sum of distances in both spaces (TokenFlow, arXiv 2412.03069).

    Channels are those of the first space (semantic), then those of the second (pixels). The weighted sum of squared distances is
    one distance of scaled vectors, so codebooks, start and revival are those of ``vq``.

    Args:
        codes: K, shared.
        dims: channels of each space.
        weights: of the squared distances, above 0.
        update, decay, commitment, kmeans, revive: as of ``vq``.
    """

    roots: Tensor

    def __init__(
        self, *, codes: int, dims: tuple[int, ...], weights: tuple[float, ...] = (1.0, 1.0), update: str = "ema",
        decay: float = 0.99, commitment: float = 0.25, kmeans: bool = True, revive: float = 0.1,
    ):  # fmt: skip
        dims = wholes("dims", dims)
        if len(weights) != len(dims) or any(number("weights", w) <= 0 for w in weights):
            raise ValueError(f"weights={tuple(weights)}; there must be one above 0 for each of dims={dims}")
        super().__init__(
            codes=codes, dim=sum(dims), update=update, decay=decay, commitment=commitment, kmeans=kmeans, revive=revive
        )
        roots = [weight**0.5 for width, weight in zip(dims, weights, strict=True) for _ in range(width)]
        self.register_buffer("roots", torch.tensor(roots), persistent=False)

    def squash(self, x: Tensor) -> Tensor:
        return x * self.roots

    def restore(self, values: Tensor) -> Tensor:
        return values / self.roots
