"""Residual: the nearest of a few centroids, and what is left of the vector in 2 bits a dimension."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from tokensieve.retrieval.storage.integer import levels, pack, packed_product, quantize, unpack
from tokensieve.retrieval.storage.product import IntegerQuery, integer_query
from tokensieve.retrieval.storage.vector_format import Fields, VectorFormat, register_format

MOST = 1024
PER_CENTROID = 32
BLOCK = 8192


@register_format("residual2")
@dataclass(frozen=True)
class Residual(VectorFormat):
    """The compression of ColBERTv2 (arXiv 2112.01488) and PLAID, with a scale per vector instead of global buckets.

    The number of centroids is the largest power of two up to 16 sqrt(sample), a 32nd of the sample and ``MOST``; without
    :meth:`fit` there is one, at zero.
    """

    centroids: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    bits: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.centroids.numel():
            object.__setattr__(self, "centroids", torch.zeros(1, self.dim))
        object.__setattr__(self, "centroids", self.centroids.float())

    def fit(self, sample: Tensor) -> Residual:
        from sklearn.cluster import MiniBatchKMeans

        most = min(16 * len(sample) ** 0.5, len(sample) / PER_CENTROID, MOST)
        count = 1 << max(int(most).bit_length() - 1, 0)
        means = MiniBatchKMeans(count, batch_size=4096, max_iter=20, n_init=1, init="random", random_state=0)
        means.fit(sample.float().cpu().numpy())
        # Rounded to what takes half of the bytes: in a small index centroids weigh as much as vectors.
        return Residual(self.dim, torch.from_numpy(means.cluster_centers_).half())

    @property
    def state(self) -> dict[str, Tensor]:
        small = self.centroids.half()
        # Those of earlier releases were not rounded, and stay as they are.
        return {"centroids": small if torch.equal(small.float(), self.centroids) else self.centroids}

    def nearest(self, x: Tensor) -> Tensor:
        """``(n,)``: the centroid of least squared distance to each of ``(n, dim)``."""
        bias = self.centroids.square().sum(1) / -2
        return torch.cat([torch.addmm(bias, part, self.centroids.T).argmax(1) for part in x.float().split(BLOCK)])

    def encode(self, x: Tensor) -> dict[str, Tensor]:
        near = self.nearest(x)
        codes, scale = quantize(x.float() - self.centroids[near], self.bits)
        return {"codes": pack(codes, self.bits), "scale": scale, "centroid": near.to(torch.int16)}

    def decode(self, fields: Fields) -> Tensor:
        left = levels(unpack(fields["codes"], self.bits, self.dim), self.bits)
        return left.mul_(fields["scale"].float()[:, None]).add_(self.centroids[fields["centroid"].int()])

    def prepare(self, query: Tensor) -> tuple[IntegerQuery, Tensor]:
        return integer_query(query), self.centroids @ query.float().T

    def score(self, fields: Fields, prepared: tuple[IntegerQuery, Tensor]) -> Tensor:
        query, centroids = prepared
        out = packed_product(fields["codes"], self.bits, self.dim, query)
        out.mul_(fields["scale"].float()[:, None]).mul_(query.scale)
        return out.add_(centroids.index_select(0, fields["centroid"].int()))
