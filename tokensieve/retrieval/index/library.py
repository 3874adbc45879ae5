"""Library: an index of texts, with the encoder that makes their vectors and the method that makes them fewer."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from tokensieve.retrieval.encoders import loading
from tokensieve.retrieval.encoders.encoded import Encoder
from tokensieve.retrieval.errors import Incompatible
from tokensieve.retrieval.index import marks
from tokensieve.retrieval.index.filters import Where
from tokensieve.retrieval.index.fusion import Fuse
from tokensieve.retrieval.index.index import Index
from tokensieve.retrieval.index.manifest import MANIFEST, read_manifest, stamp
from tokensieve.retrieval.index.put import COUNTS, Putting
from tokensieve.retrieval.index.recipe import Recipe
from tokensieve.retrieval.index.results import with_vectors
from tokensieve.retrieval.index.search import Hit
from tokensieve.retrieval.index.searching import Searching
from tokensieve.retrieval.storage.files import read_json, write_json

RECIPE = "library.json"


class Library(Searching, Putting):
    """Texts in an index, cut into passages; ids of passages are ``name#0``, ``name#1``, ...

    Threads may share one; the writing calls take turns. The encoder is loaded when it is first needed.

    Attributes:
        load: what loads it, by what the recipe says of it.

    Example:
        >>> library = Library.create("my.index", Recipe(keep=0.5))              # doctest: +SKIP
        >>> library.put([Text("a", "Open a file and read it.")])                # doctest: +SKIP
        >>> library.search("how do I read a file")[0].text                      # doctest: +SKIP
    """

    def __init__(self, index: Index, recipe: Recipe, encoder: Encoder | None = None) -> None:
        self.index, self.recipe = index, recipe
        self._encoder = encoder
        self.load: Callable[[str | None], Encoder] = lambda source: loading.load_encoder(source)
        self.read, self.unknown = Counter(), Counter()
        self._writing = threading.RLock()
        self._seen = stamp(self.index.folder)

    @classmethod
    def create(
        cls, folder: str | Path, recipe: Recipe | None = None, encoder: Encoder | None = None,
        fitted: Mapping[str, Tensor] | None = None,
    ) -> Library:  # fmt: skip
        """A new, empty one; ``fitted`` as :meth:`Index.create` takes it."""
        folder, recipe = Path(folder), recipe or Recipe()
        encoder = encoder or loading.load_encoder(recipe.encoder)
        made = encoder.identity
        beside = {RECIPE: asdict(recipe), COUNTS: None}
        index = Index.create(folder, made.dim, recipe.codec, made.label, recipe.sketch, fitted, beside)
        return cls(index, recipe, encoder)

    @classmethod
    def open(cls, folder: str | Path, encoder: Encoder | None = None) -> Library:
        """One that exists.

        Args:
            encoder: the one that it was made with, wherever that is now; by default it is loaded from where it was.

        Raises:
            Incompatible: it was made with another encoder, told by its digest.
        """
        folder = Path(folder)
        if (folder / "shards.json").exists():
            raise Incompatible(
                f"the index in {folder} is in shards; `tokensieve search` and shards.Collection search it"
            )
        if not (folder / MANIFEST).exists():
            raise FileNotFoundError(f"there is no index in {folder}; `tokensieve index DOCS --out {folder}` makes one")
        if not (folder / RECIPE).exists():
            raise Incompatible(f"the index in {folder} holds vectors without texts; Index.open reads it")
        read_manifest(folder)
        recipe = Recipe.read(read_json(folder / RECIPE), folder)
        index = Index.open(folder)
        if encoder is not None:
            refuse_encoder(folder, index.model, encoder)
        return cls(index, recipe, encoder)

    @property
    def encoder(self) -> Encoder:
        """What texts and queries are encoded by.

        Raises:
            Incompatible: it is not where it was, or is another by now.
        """
        if self._encoder is None:
            try:
                found = self.load(self.recipe.encoder)
            except ValueError as problem:
                raise Incompatible(
                    f"{self.index.folder} was made with the encoder {self.recipe.encoder}, which cannot be loaded: {problem}; "
                    "where it has moved, say so (--encoder, or Library.open(folder, encoder))"
                ) from problem
            refuse_encoder(self.index.folder, self.index.model, found)
            self._encoder = found
        return self._encoder

    def moved(self, recipe: Recipe) -> None:
        """Remember a recipe that differs in where its encoder is by now, or in which files it takes."""
        with self._writing:
            self.index.begin()
            self.recipe = recipe
            write_json(self.index.folder / RECIPE, asdict(self.recipe))

    def hits(
        self, vectors: Sequence[Tensor], k: int, where: Where | None = None, rerank: int | None = None, *,
        words: Sequence[str] | None = None, fuse: Fuse = "none", min_score: float | None = None,
    ) -> list[list[Hit]]:  # fmt: skip
        return self.index.search(vectors, k, where, rerank, words=words, fuse=fuse, min_score=min_score)

    def stored(self, hits: Sequence[Hit]) -> list[tuple[Hit, Tensor]]:
        return with_vectors(self.index, hits)

    def unknown_fields(self, where: Where) -> list[str]:
        return self.index.unknown_fields(where)

    def ids(self) -> Iterator[str]:
        return self.index.ids()

    def metadata(self, ids: Sequence[str]) -> list[dict[str, Any] | None]:
        return self.index.metadata(ids)

    @property
    def folder(self) -> Path:
        return self.index.folder

    @property
    def size(self) -> dict[str, int]:
        return self.index.size

    @property
    def damaged(self) -> list[str]:
        return self.index.damaged

    def names(self) -> set[str]:
        """The names of all texts."""
        return {i.rpartition("#")[0] for i in self.index.ids()}

    def get(self, name: str) -> list[dict[str, Any]]:
        """The passages of a text, each with its id, text, span, what stands above it (``context``), its place in words, and
        metadata; none where there is no such text."""
        self.refresh()
        ids = self._of(name)
        return [
            {"id": i, "text": m["text"], "span": m["span"], "context": m.get(marks.CONTEXT, ""),
             "place": m.get(marks.PLACE, ""), "metadata": marks.free(m)}
            for i, m in zip(ids, self.index.metadata(ids), strict=True)
            if m
        ]  # fmt: skip

    def source(self, name: str) -> str | None:
        """The text that the spans of a document's passages count, where it was extracted from a file that is no text (PDF,
        Word, ...) and an index holds it; None for all others, whose source is the file."""
        held = [m or {} for m in self.index.metadata(self._of(name))]
        if not held or not all(marks.GAP in m for m in held):
            return None
        out = ""
        for m in held:
            out += m[marks.GAP] + m["text"][max(len(out) - m["span"][0], 0) :]
        return out

    def refresh(self) -> None:
        """See what other processes have committed, also where the index was made anew in its folder.

        Raises:
            Incompatible: it was made anew with another encoder.
            Gone: there is none any more.
        """
        now = stamp(self.index.folder)
        if now != self._seen and self._writing.acquire(blocking=False):
            try:
                before = self.index.identity
                self.index.refresh()
                if self.index.identity != before:
                    self.recipe = Recipe.read(read_json(self.index.folder / RECIPE), self.index.folder)
                    self.__dict__.pop("_frequencies", None)
                self._seen = now
            finally:
                self._writing.release()

    def close(self) -> None:
        """Let others write."""
        with self._writing:
            self.index.close()

    def __len__(self) -> int:
        return len(self.index)

    def _written(self) -> None:
        self._seen = stamp(self.index.folder)


def refuse_encoder(folder: Path, model: str | None, encoder: Encoder) -> None:
    """Refuse an encoder whose digest is not that of the one an index was made with; names and folders do not count."""
    made, found = model or "", encoder.identity
    if made.rpartition(" ")[2] != found.label.rpartition(" ")[2]:
        raise Incompatible(
            f"{folder} was made for model {model!r}, not {found.label!r}; give that one (--encoder), or index the documents anew"
        )
