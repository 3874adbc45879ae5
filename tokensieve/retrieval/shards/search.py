"""Search: every shard is asked, and the best of what they find are the best of all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from tokensieve.retrieval.encoders import loading
from tokensieve.retrieval.encoders.encoded import Encoder
from tokensieve.retrieval.errors import Incompatible
from tokensieve.retrieval.index.filters import Where
from tokensieve.retrieval.index.index import Index
from tokensieve.retrieval.index.library import refuse_encoder
from tokensieve.retrieval.index.results import (
    CANDIDATES,
    SearchResult,
    asked,
    notes,
    question,
    rank_results,
    with_vectors,
)
from tokensieve.retrieval.index.search import Hit
from tokensieve.retrieval.shards.manifest import Shards


class Part:
    """One shard, as those that search it are asked; nothing that it is told changes it, so any call may be repeated."""

    def __init__(self, folder: Path) -> None:
        self._index = Index.open(folder)

    def model(self) -> str | None:
        return self._index.model

    def search(self, query: Tensor, k: int, where: Where | None, rerank: int | None) -> list[Hit]:
        return self._index.search(query, k, where, rerank)

    def with_vectors(self, hits: Sequence[Hit]) -> list[tuple[Hit, Tensor]]:
        """The hits that it holds, with their vectors."""
        return with_vectors(self._index, hits)

    def count(self) -> int:
        return len(self._index)

    def damaged(self) -> list[str]:
        return [f"{self._index.folder.name}/{part}" for part in self._index.damaged]


class Parts(Protocol):
    """The parts of a collection, here or elsewhere."""

    def ask(self, what: str, *arguments: Any) -> list[Any]:
        """What each part's method ``what`` gives, in the order of the parts."""
        ...

    def close(self) -> None: ...


class Here:
    """All parts in this process."""

    def __init__(self, folders: Iterable[Path]) -> None:
        self._parts = [Part(folder) for folder in folders]

    def ask(self, what: str, *arguments: Any) -> list[Any]:
        return [getattr(part, what)(*arguments) for part in self._parts]

    def close(self) -> None:
        """Nothing is held."""


class Collection:
    """A collection in shards that is searched as one library is, in the state in which it was opened.

    Example:
        >>> with Collection.open("my.shards") as collection:                    # doctest: +SKIP
        ...     collection.search("how do I read a file")[0].text
    """

    def __init__(self, shards: Shards, encoder: Encoder, parts: Parts) -> None:
        self.shards, self.encoder, self._parts = shards, encoder, parts

    @classmethod
    def open(
        cls, folder: str | Path, parts: Callable[[list[Path]], Parts] = Here, encoder: Encoder | None = None
    ) -> Collection:
        """One whose shards are all built.

        Args:
            parts: what the shards' folders are opened by; :class:`~tokensieve.retrieval.shards.cluster.Actors` opens each in
                a process of its own.

        Raises:
            Incompatible: a shard is not built, or was made by another encoder.
        """
        shards = Shards.open(folder)
        if len(shards.built) < shards.count:
            raise Incompatible(
                f"{len(shards.built)} of the {shards.count} shards in {folder} are built; the command that began goes on"
            )
        encoder = encoder or loading.load_encoder(shards.recipe.encoder)
        opened = parts([shards.at(number).absolute() for number in range(shards.count)])
        for number, model in enumerate(opened.ask("model")):
            try:
                refuse_encoder(shards.at(number), model, encoder)
            except Incompatible:
                opened.close()
                raise
        return cls(shards, encoder, opened)

    def search(
        self, query: str, k: int = 10, where: Where | None = None, keep: int | float | None = None,
        rerank: int | None = None,
    ) -> list[SearchResult]:  # fmt: skip
        """As :meth:`Library.search`; the scores, ids and order are those of one library of all texts."""
        tokens = asked(self.encoder.queries([question(query)]), notes(self.encoder, query))
        best = self.best(tokens.vectors, k if keep is None else max(k, CANDIDATES), where, rerank)
        stored = {hit.id: (hit, vectors) for part in self._parts.ask("with_vectors", best) for hit, vectors in part}
        return rank_results(tokens, [stored[hit.id] for hit in best if hit.id in stored], k, keep, self.shards.recipe)

    def notes(self, query: str) -> tuple[str, ...]:
        """As :meth:`Library.notes`."""
        return notes(self.encoder, query)

    def best(self, query: Tensor, k: int = 10, where: Where | None = None, rerank: int | None = None) -> list[Hit]:
        """The k passages of the highest MaxSim with a query ``(Q, dim)`` (see :meth:`Index.search`)."""
        return merged(self._parts.ask("search", query, k, where, rerank), k)

    @property
    def damaged(self) -> list[str]:
        """What has been found damaged so far, by name; the rest is searched."""
        return [part for parts in self._parts.ask("damaged") for part in parts]

    def __len__(self) -> int:
        return sum(self._parts.ask("count"))

    def close(self) -> None:
        """Let go of the shards."""
        self._parts.close()

    def __enter__(self) -> Collection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def merged(parts: Iterable[Sequence[Hit]], k: int) -> list[Hit]:
    """The k best of what several stores have found, equal scores in the order of ids."""
    return sorted((hit for part in parts for hit in part), key=lambda h: (-h.score, h.id))[:k]
