"""Store: what holds documents and finds them; the Index is one, adapters to databases and services are others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from tokensieve.core.registry import Registry
from tokensieve.retrieval.index.filters import Where
from tokensieve.retrieval.index.index import Document
from tokensieve.retrieval.scoring.ragged import Documents


@runtime_checkable
class Store(Protocol):
    """Documents of token vectors by id, found by MaxSim.

    Ids are strings and stay; ``add`` refuses an id that is there and ``update`` replaces it; a call is one commit.
    ``search`` gives the ``k`` hits of the highest score, equal scores in the order of ids, so that those of several stores
    merge by (-score, id); ``where`` is applied before anything is scored (see ``filters.Where``).
    """

    @property
    def dim(self) -> int: ...
    def add(
        self, vectors: Documents, ids: Sequence[str] | None = None, metadata: Sequence[Mapping[str, Any]] | None = None
    ) -> list[str]: ...
    def update(
        self, vectors: Documents, ids: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None = None
    ) -> list[str]: ...
    def delete(self, ids: Sequence[str]) -> int: ...
    def search(self, query: Any, k: int = 10, where: Where | None = None) -> list[Any]: ...
    def get(self, id: str) -> Document: ...
    def ids(self) -> Iterator[str]: ...
    def __len__(self) -> int: ...
    def __contains__(self, id: str) -> bool: ...
    def close(self) -> None: ...


STORES: Registry[Callable[..., Store]] = Registry("store", "tokensieve.retrieval.stores")
"""Stores beside the Index, by name: classes, or functions that open one. What they need beside this package is imported when
one is opened; where it is not installed, the error says how to install it."""
register_store = STORES.register


def list_stores() -> list[str]:
    """Their names."""
    return STORES.names()
