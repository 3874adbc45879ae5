"""Library: an index of texts, with the encoder that makes their vectors and the method that makes them fewer."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
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
from tokensieve.retrieval.index.manifest import MANIFEST, read_manifest
from tokensieve.retrieval.index.put import COUNTS, Putting
from tokensieve.retrieval.index.recipe import Recipe
from tokensieve.retrieval.index.results import (
    CANDIDATES,
    Asked,
    asked,
    firsts,
    notes,
    question,
    rank_results,
    with_vectors,
)
from tokensieve.retrieval.index.search import Hit
from tokensieve.retrieval.index.validation import whole
from tokensieve.retrieval.scoring.words import phrases, unquoted
from tokensieve.retrieval.storage.files import read_json, write_json

RECIPE = "library.json"


class Library(Putting):
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
        self._seen = self._stamp()

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

    def search(self, query: str | Sequence[str], k: int = 10, where: Where | None = None,
        keep: int | float | None = None, rerank: int | None = None, *, fuse: Fuse = "none", offset: int = 0,
        min_score: float | None = None, per_document: bool = False,
    ) -> list[Any]:  # fmt: skip
        """The passages of the highest MaxSim, and what each token of the query was matched with; of many queries, a list of such
        lists. What stands in double quotes must stand in a passage.

        Args:
            where: conditions on metadata (see ``filters.Where``).
            keep: show the effect of fewer vectors: the 50 best passages (or ``k``, if more) are ranked again by so many of
                their stored vectors.
            rerank, fuse, offset, min_score: see :meth:`IndexReader.search`.
            per_document: only the best passage of each document.

        Raises:
            ValueError: a query is empty, or a budget or filter is out of range.
        """
        self.refresh()
        whole("offset", offset, 0)
        texts = [question(q) for q in ([query] if isinstance(query, str) or not isinstance(query, Sequence) else query)]
        if keep is not None and (fuse != "none" or offset or per_document):
            raise ValueError(f"keep={keep!r} ranks the best by MaxSim again; leave out fuse, offset and per_document")
        encoded = self.encoder.queries([unquoted(q) for q in texts])
        out = []
        for i, text in enumerate(texts):
            tokens = asked(encoded.rows([i]), self.notes(text, where))

            def ranked(most: int, tokens: Asked = tokens, text: str = text) -> list[Hit]:
                words = text if fuse != "none" or phrases(text) else None
                return self.index.search(
                    tokens.vectors, most, where, rerank, words=words, fuse=fuse, min_score=min_score
                )

            if per_document:
                hits = firsts(ranked, k + offset)[offset:]
            else:
                hits = ranked(k + offset if keep is None else max(k, CANDIDATES))[offset:]
            out.append(rank_results(tokens, with_vectors(self.index, hits), k, keep, self.recipe))
        return out[0] if isinstance(query, str) else out

    def notes(self, query: str, where: Where | None = None) -> tuple[str, ...]:
        """What of a query is of no effect, in words: an end that the encoder cuts off, words that it does not know, fields that
        no document has."""
        return notes(self.encoder, unquoted(query)) + tuple(
            f"no document has the field {field!r}" for field in self.index.unknown_fields(where or {})
        )

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
        stamp = self._stamp()
        if stamp != self._seen and self._writing.acquire(blocking=False):
            try:
                before = self.index.identity
                self.index.refresh()
                if self.index.identity != before:
                    self.recipe = Recipe.read(read_json(self.index.folder / RECIPE), self.index.folder)
                    self.__dict__.pop("_frequencies", None)
                self._seen = stamp
            finally:
                self._writing.release()

    def close(self) -> None:
        """Let others write."""
        with self._writing:
            self.index.close()

    def __len__(self) -> int:
        return len(self.index)

    def _written(self) -> None:
        self._seen = self._stamp()

    def _stamp(self) -> tuple[int, int, bytes] | None:
        """What changes with every commit, whatever the clock says: the checksum that a manifest begins with."""
        file = self.index.folder / MANIFEST
        with suppress(OSError), open(file, "rb") as held:
            about = os.fstat(held.fileno())
            return about.st_ino, about.st_size, held.read(24)
        return None


def refuse_encoder(folder: Path, model: str | None, encoder: Encoder) -> None:
    """Refuse an encoder whose digest is not that of the one an index was made with; names and folders do not count."""
    made, found = model or "", encoder.identity
    if made.rpartition(" ")[2] != found.label.rpartition(" ")[2]:
        raise Incompatible(
            f"{folder} was made for model {model!r}, not {found.label!r}; give that one (--encoder), or index the documents anew"
        )
