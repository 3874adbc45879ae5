"""Sketch: a few vectors that stand for a document while candidates are sought."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch

from tokensieve.retrieval.scoring.fde import Fde
from tokensieve.retrieval.scoring.pool import pool
from tokensieve.retrieval.scoring.ragged import Ragged


class Sketch(Protocol):
    """Turns documents and queries into smaller sets of vectors, ``size`` dimensions each, compared by MaxSim."""

    name: ClassVar[str]

    @property
    def size(self) -> int: ...
    def documents(self, docs: Ragged) -> Ragged: ...
    def queries(self, queries: Ragged) -> Ragged: ...


@dataclass(frozen=True)
class Pooled:
    """A vector for every eight tokens, by clustering."""

    dim: int
    factor: int = 8
    name: ClassVar[str] = "pooled"

    @property
    def size(self) -> int:
        return self.dim

    def documents(self, docs: Ragged) -> Ragged:
        return pool(docs, self.factor)

    def queries(self, queries: Ragged) -> Ragged:
        return queries


@dataclass(frozen=True)
class Mean:
    """The mean vector of the document with the mean vector of the query."""

    dim: int
    name: ClassVar[str] = "mean"

    @property
    def size(self) -> int:
        return self.dim

    def documents(self, docs: Ragged) -> Ragged:
        total = torch.zeros(len(docs), docs.dim).index_add_(
            0, torch.arange(len(docs)).repeat_interleave(docs.lengths), docs.tokens.float()
        )
        return Ragged(total / docs.lengths[:, None], torch.arange(len(docs) + 1))

    queries = documents


@dataclass(frozen=True)
class FdeSketch:
    """A fixed dimensional encoding (MUVERA)."""

    dim: int
    planes: int = 4
    repetitions: int = 10
    width: int = 8
    name: ClassVar[str] = "fde"

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


SKETCHES: dict[str, type[Pooled] | type[Mean] | type[FdeSketch]] = {s.name: s for s in (Pooled, Mean, FdeSketch)}


def sketch(name: str, dim: int) -> Sketch:
    """A sketch by name."""
    if name not in SKETCHES:
        raise ValueError(f"unknown sketch {name!r}; there are {', '.join(SKETCHES)}")
    return SKETCHES[name](dim)
