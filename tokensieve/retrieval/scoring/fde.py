"""Fixed dimensional encodings: one vector for a set of vectors, whose dot products approximate MaxSim."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokensieve.retrieval.scoring.maxsim import segment_max
from tokensieve.retrieval.scoring.ragged import Ragged

FAR = 1 << 17


@dataclass(frozen=True)
class Fde:
    """MUVERA (arXiv 2405.19504): buckets by random hyperplanes; a query sums its tokens in a bucket, a document averages.

    An empty bucket of a document takes its token whose hash differs in the fewest bits, the first of equals. Encodings
    have ``repetitions * 2^planes * width`` dimensions; dot products of a query's with a document's are scaled to estimate
    MaxSim, and without projection never exceed it.

    Attributes:
        planes: hyperplanes of a repetition; repetitions: independent ones, averaged.
        width: dimensions that tokens are projected to within a bucket by random signs; None for no projection.
    """

    dim: int
    planes: int = 4
    repetitions: int = 10
    width: int | None = 8
    seed: int = 0

    @property
    def size(self) -> int:
        return self.repetitions * 2**self.planes * (self.width or self.dim)

    @torch.no_grad()
    def queries(self, queries: Ragged) -> Tensor:
        """``(B, size)``."""
        return self._encode(queries, average=False)

    @torch.no_grad()
    def documents(self, docs: Ragged) -> Tensor:
        """``(D, size)``."""
        return self._encode(docs, average=True)

    def _encode(self, sets: Ragged, average: bool) -> Tensor:
        draw = torch.Generator().manual_seed(self.seed)
        width, buckets = self.width or self.dim, 2**self.planes
        owner = torch.arange(len(sets)).repeat_interleave(sets.lengths)
        x = sets.tokens.float()
        out = torch.empty(len(sets), self.repetitions, buckets, width)
        for r in range(self.repetitions):
            planes = torch.randn(self.dim, self.planes, generator=draw)
            bits = (x @ planes >= 0).long()
            code = (bits << torch.arange(self.planes)).sum(1)
            y = x
            if self.width is not None:
                signs = torch.randint(0, 2, (self.dim, width), generator=draw) * 2.0 - 1.0
                y = x @ signs * width**-0.5
            place = owner * buckets + code
            total = torch.zeros(len(sets) * buckets, width).index_add_(0, place, y)
            if average:
                held = place.bincount(minlength=len(sets) * buckets)
                total /= held.clamp(min=1)[:, None]
                empty = (held == 0).nonzero()[:, 0]
                total[empty] = y[self._nearest(code, sets, buckets).flatten()[empty]]
            out[:, r] = total.view(len(sets), buckets, width)
        return out.flatten(1) * self.repetitions**-0.5

    def _nearest(self, code: Tensor, sets: Ragged, buckets: int) -> Tensor:
        """``(D, buckets)``: the token of each document whose hash is nearest to each bucket's."""
        step = torch.arange(buckets)
        apart = (step[:, None] ^ step)[..., None].bitwise_right_shift(torch.arange(self.planes)).bitwise_and(1).sum(2)
        start = sets.offsets[:-1]
        turn = torch.arange(len(code)) - start.repeat_interleave(sets.lengths)
        # Bits that differ, then the place in the document, in one number that float32 holds exactly.
        order = apart[code] * FAR + turn.clamp(max=FAR - 1)[:, None]
        return (-segment_max(-order.float(), sets.offsets)).long() % FAR + start[:, None]
