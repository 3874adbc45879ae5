"""Adapter: a Store on a database, from the few calls that differ between databases."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from tokensieve.retrieval.index.filters import Where
from tokensieve.retrieval.index.index import Document
from tokensieve.retrieval.index.search import Hit
from tokensieve.retrieval.index.validation import (
    WritableStore,
    check_names,
    incoming,
    listed,
    numbered,
    query_of,
    refuse_held,
)
from tokensieve.retrieval.scoring.ragged import Documents, Ragged


class Adapter(WritableStore, ABC):
    """The checks, numbers and order of results that every Store has.

    Numbers given to documents without ids count from how many documents there are; those of deleted ones come again.
    """

    dim: int

    @abstractmethod
    def _held(self, ids: Sequence[str]) -> set[str]:
        """Which of these ids are there."""

    @abstractmethod
    def _write(self, docs: Ragged, ids: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> None:
        """Store documents, those of the same id replaced."""

    @abstractmethod
    def _erase(self, ids: Sequence[str]) -> None:
        """Delete documents that are there."""

    @abstractmethod
    def _condition(self, where: Where | None) -> Any:
        """Conditions in the database's own language; ValueError where it has no words for one."""

    @abstractmethod
    def _best(self, query: Tensor, limit: int, condition: Any) -> list[Hit]:
        """The documents of the highest MaxSim, descending, equal ones in any order."""

    @abstractmethod
    def _read(self, id: str) -> Document | None: ...

    @abstractmethod
    def ids(self) -> Iterator[str]: ...

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def close(self) -> None: ...

    def delete(self, ids: Sequence[str]) -> int:
        """Delete documents; ids that are not there are passed over. Returns how many were deleted."""
        gone = sorted(self._held(listed(ids)))
        if gone:
            self._erase(gone)
        return len(gone)

    def search(self, query: Any, k: int = 10, where: Where | None = None) -> list[Any]:
        """The k documents of the highest MaxSim with a query ``(Q, dim)``, or lists of them for many queries."""
        single, queries = query_of(query, k, where, self.dim)
        condition = self._condition(where)
        hits = [self._first(q, k, condition) for q in queries]
        return hits[0] if single else hits

    def get(self, id: str) -> Document:
        """A document by its id."""
        found = self._read(id)
        if found is None:
            raise KeyError(f"there is no document {id!r}")
        return found

    def __contains__(self, id: str) -> bool:
        return bool(self._held([id]))

    def _first(self, query: Tensor, k: int, condition: Any) -> list[Hit]:
        """Databases order equal scores as they like, so all that are equal to the last are asked for."""
        limit = k + 1
        while True:
            hits = self._best(query, limit, condition)
            if len(hits) < limit or hits[-1].score < hits[k - 1].score:
                return sorted(hits, key=lambda h: (-h.score, h.id))[:k]
            limit *= 2

    def _put(
        self, vectors: Documents, ids: list[str] | None, metadata: Sequence[Mapping[str, Any]] | None, replace: bool
    ) -> list[str]:
        docs, notes = incoming(vectors, metadata, self.dim)
        names = numbered(len(self), len(docs), lambda names: bool(self._held(names)))[1] if ids is None else ids
        check_names(names, len(docs), len(notes))
        if not replace:
            held = self._held(names)
            refuse_held([i for i in names if i in held])
        if names:
            self._write(docs, names, [{}] * len(docs) if metadata is None else metadata)
        return names

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
