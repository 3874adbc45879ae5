"""Search: every shard is asked, and the best of what they find are the best of all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from tokensieve.retrieval.encoders import loading
from tokensieve.retrieval.encoders.encoded import Encoder
from tokensieve.retrieval.errors import Gone, Incompatible
from tokensieve.retrieval.index.filters import Where
from tokensieve.retrieval.index.fusion import Candidate, Fuse, fused
from tokensieve.retrieval.index.lexical import WordCounts
from tokensieve.retrieval.index.library import Library, refuse_encoder
from tokensieve.retrieval.index.manifest import stamp
from tokensieve.retrieval.index.reader import at_least
from tokensieve.retrieval.index.recipe import Recipe
from tokensieve.retrieval.index.search import Hit
from tokensieve.retrieval.index.searching import Searching
from tokensieve.retrieval.shards.manifest import SHARDS, Shards


class Part:
    """One shard, as those that search it are asked; nothing that it is told changes it, so any call may be repeated."""

    def __init__(self, folder: Path) -> None:
        self._library = Library.open(folder)

    def refresh(self) -> str | None:
        """See what has been committed since; returns what its encoder is called."""
        self._library.refresh()
        return self._library.index.model

    def search(
        self, query: Any, k: int, where: Where | None, rerank: int | None, words: str | Sequence[str] | None
    ) -> list[Any]:
        return self._library.index.search(query, k, where, rerank, words=words)

    def word_counts(self, words: str) -> WordCounts:
        return self._library.index.word_counts(words)

    def candidates(
        self, query: Tensor, words: str, k: int, where: Where | None, rerank: int | None, fuse: Fuse, counts: WordCounts
    ) -> list[Candidate]:
        return self._library.index.candidates(query, words, k, where, rerank, fuse, counts)

    def with_vectors(self, hits: Sequence[Hit]) -> list[tuple[Hit, Tensor]]:
        """The hits that it holds, with their metadata and vectors."""
        return self._library.stored(hits)

    def unknown_fields(self, where: Where) -> list[str]:
        return self._library.unknown_fields(where)

    def ids(self) -> list[str]:
        return list(self._library.ids())

    def metadata(self, ids: Sequence[str]) -> list[dict[str, Any] | None]:
        return self._library.metadata(ids)

    def get(self, name: str) -> list[dict[str, Any]]:
        return self._library.get(name)

    def size(self) -> dict[str, int]:
        return self._library.size

    def damaged(self) -> list[str]:
        return [f"{self._library.index.folder.name}/{part}" for part in self._library.damaged]


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


class Collection(Searching):
    """A collection in shards that is searched as one library is: the scores, ids and order are those of one library of all texts.

    Example:
        >>> with Collection.open("my.shards") as collection:                    # doctest: +SKIP
        ...     collection.search("how do I read a file")[0].text
    """

    def __init__(self, shards: Shards, encoder: Encoder, parts: Parts, how: Callable[[list[Path]], Parts]) -> None:
        self.shards, self._encoder, self._parts, self._how = shards, encoder, parts, how
        self._seen = stamp(shards.folder, SHARDS)

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
        try:
            _refuse_encoders(shards, opened.ask("refresh"), encoder)
        except Incompatible:
            opened.close()
            raise
        return cls(shards, encoder, opened, parts)

    @property
    def encoder(self) -> Encoder:
        return self._encoder

    @property
    def recipe(self) -> Recipe:  # type: ignore[override]
        """How texts become vectors, in every shard."""
        return self.shards.recipe

    def refresh(self) -> None:
        """See what other processes have committed, also where the collection was made anew in its folder.

        Raises:
            Incompatible: it was made anew with another encoder, or is not built to its end yet.
            Gone: there is none any more.
        """
        now = stamp(self.shards.folder, SHARDS)
        if now is None:
            raise Gone(f"the collection in {self.shards.folder} is gone; what was read of it is not served any more")
        if now != self._seen:
            shards = Shards.open(self.shards.folder)
            if shards.count != self.shards.count or len(shards.built) < shards.count:
                again = Collection.open(self.shards.folder, self._how, self._encoder)
                self._parts.close()
                self._parts = again._parts
            self.shards, self._seen = shards, now
        _refuse_encoders(self.shards, self._parts.ask("refresh"), self._encoder)

    def hits(
        self, vectors: Sequence[Tensor], k: int, where: Where | None = None, rerank: int | None = None, *,
        words: Sequence[str] | None = None, fuse: Fuse = "none", min_score: float | None = None,
    ) -> list[list[Hit]]:  # fmt: skip
        if fuse == "none":
            asked = self._parts.ask("search", vectors, k, where, rerank, words)
            found = [merged(parts, k) for parts in zip(*asked, strict=True)]
        else:
            found = [self._fused(*one, k, where, rerank, fuse) for one in zip(vectors, words or (), strict=True)]
        return [at_least(hits, min_score) for hits in found]

    def best(self, query: Tensor, k: int = 10, where: Where | None = None, rerank: int | None = None) -> list[Hit]:
        """The k passages of the highest MaxSim with a query ``(Q, dim)`` (see :meth:`Index.search`)."""
        return self.hits([query], k, where, rerank)[0]

    def _fused(
        self, query: Tensor, words: str, k: int, where: Where | None, rerank: int | None, fuse: Fuse
    ) -> list[Hit]:
        counts = sum(self._parts.ask("word_counts", words), WordCounts())
        found = self._parts.ask("candidates", query, words, k, where, rerank, fuse, counts)
        return fused([one for part in found for one in part], k, fuse)

    def stored(self, hits: Sequence[Hit]) -> list[tuple[Hit, Tensor]]:
        held = {hit.id: (hit, vectors) for part in self._parts.ask("with_vectors", hits) for hit, vectors in part}
        return [held[hit.id] for hit in hits if hit.id in held]

    def unknown_fields(self, where: Where) -> list[str]:
        first, *others = self._parts.ask("unknown_fields", where)
        return [field for field in first if all(field in other for other in others)]

    def ids(self) -> Iterator[str]:
        for part in self._parts.ask("ids"):
            yield from part

    def metadata(self, ids: Sequence[str]) -> list[dict[str, Any] | None]:
        held = zip(*self._parts.ask("metadata", ids), strict=True)
        return [next((m for m in each if m is not None), None) for each in held]

    def get(self, name: str) -> list[dict[str, Any]]:
        return next((passages for passages in self._parts.ask("get", name) if passages), [])

    @property
    def folder(self) -> Path:
        return self.shards.folder

    @property
    def size(self) -> dict[str, int]:
        sizes = self._parts.ask("size")
        return {name: sum(size[name] for size in sizes) for name in sizes[0]}

    @property
    def damaged(self) -> list[str]:
        return [part for parts in self._parts.ask("damaged") for part in parts]

    def __len__(self) -> int:
        return self.size["documents"]

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


def _refuse_encoders(shards: Shards, models: Sequence[str | None], encoder: Encoder) -> None:
    for number, model in enumerate(models):
        refuse_encoder(shards.at(number), model, encoder)
