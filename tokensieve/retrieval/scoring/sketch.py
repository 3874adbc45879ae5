"""Sketch: a few vectors that stand for a document while candidates are sought."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from tokensieve.core.registry import Registry
from tokensieve.retrieval.scoring.fde import Fde
from tokensieve.retrieval.scoring.pool import pool
from tokensieve.retrieval.scoring.ragged import Ragged


class Sketch(Protocol):
    """Turns documents and queries into smaller sets of vectors, ``size`` dimensions each, compared by MaxSim.

    The vectors are stored in int8; one that has another vector format in ``codec`` has them stored in that.
    """

    @property
    def size(self) -> int: ...
    def documents(self, docs: Ragged) -> Ragged: ...
    def queries(self, queries: Ragged) -> Ragged: ...


SKETCHES: Registry[Callable[[int], Sketch]] = Registry("sketch", "tokensieve.retrieval.scoring")
register_sketch = SKETCHES.register


@register_sketch("pooled")
@dataclass(frozen=True)
class Pooled:
    """A vector for every eight tokens, by clustering."""

    dim: int
    factor: int = 8
    codec: str = "int8"

    @property
    def size(self) -> int:
        return self.dim

    def documents(self, docs: Ragged) -> Ragged:
        return pool(docs, self.factor)

    def queries(self, queries: Ragged) -> Ragged:
        return queries


@register_sketch("coarse")
def coarse(dim: int) -> Pooled:
    """A vector for every sixteen tokens: half the bytes of "pooled", of which more candidates are scored."""
    return Pooled(dim, 16)


@register_sketch("signs")
def signs(dim: int) -> Pooled:
    """A vector for every eight tokens, of which only the signs are stored: an eighth of the bytes of "pooled"."""
    return Pooled(dim, 8, "binary")


@register_sketch("mean")
@dataclass(frozen=True)
class Mean:
    """The mean vector of the document with the mean vector of the query."""

    dim: int

    @property
    def size(self) -> int:
        return self.dim

    def documents(self, docs: Ragged) -> Ragged:
        total = torch.zeros(len(docs), docs.dim).index_add_(
            0, torch.arange(len(docs)).repeat_interleave(docs.lengths), docs.tokens.float()
        )
        return Ragged(total / docs.lengths[:, None], torch.arange(len(docs) + 1))

    queries = documents


@register_sketch("fde")
@dataclass(frozen=True)
class FdeSketch:
    """A fixed dimensional encoding (MUVERA)."""

    dim: int
    planes: int = 4
    repetitions: int = 10
    width: int = 8

    @property
    def size(self) -> int:
        return self._fde.size

    @property
    def _fde(self) -> Fde:
        return Fde(self.dim, self.planes, self.repetitions, self.width)

    def documents(self, docs: Ragged) -> Ragged:
        return Ragged(self._fde.documents(docs), torch.arange(len(docs) + 1))

    def queries(self, queries: Ragged) -> Ragged:
        return Ragged(self._fde.queries(queries), torch.arange(len(queries) + 1))


def sketch(name: str, dim: int) -> Sketch:
    """A sketch by name, for vectors of ``dim`` dimensions.

    Raises:
        ValueError: no such name.
    """
    return SKETCHES.get(name)(dim)
