"""Library: an index of texts, with the encoder that makes their vectors and the method that makes them fewer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokensieve.core.method_registry import get_method
from tokensieve.retrieval.encoders import loading
from tokensieve.retrieval.encoders.encoded import Encoded, Encoder, ends
from tokensieve.retrieval.encoders.reduce import Frequencies, reduce
from tokensieve.retrieval.errors import Incompatible
from tokensieve.retrieval.index.filters import Where
from tokensieve.retrieval.index.index import Index
from tokensieve.retrieval.index.recipe import Recipe
from tokensieve.retrieval.index.results import (
    CANDIDATES,
    OWN,
    SearchResult,
    asked,
    question,
    rank_results,
    with_vectors,
)
from tokensieve.retrieval.index.snapshot import MANIFEST, read_manifest, vacant
from tokensieve.retrieval.index.validation import listed
from tokensieve.retrieval.sources.folder import Text
from tokensieve.retrieval.storage.files import map_tensors, read_json, write_json, write_tensors

RECIPE, COUNTS = BESIDE = "library.json", "frequencies"
TOGETHER = 64
"""Passages encoded between two reports of progress."""
COMMIT = 512
"""Passages of a commit: what an interrupted build has to do again."""
Row = tuple[str, str, dict[str, Any]]
"""A passage to be stored: its id, its text, its metadata."""


class Library:
    """Texts in an index, cut into passages; ids of passages are ``name#0``, ``name#1``, ...

    Threads may share one; the writing calls take turns.

    Example:
        >>> library = Library.create("my.index", Recipe(keep=0.5))              # doctest: +SKIP
        >>> library.put([Text("a", "Open a file and read it.")])                # doctest: +SKIP
        >>> library.search("how do I read a file")[0].text                      # doctest: +SKIP
    """

    def __init__(self, index: Index, recipe: Recipe, encoder: Encoder) -> None:
        self.index, self.recipe, self.encoder = index, recipe, encoder
        self._needs = {need.name for need in get_method(recipe.method).needs}
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
        write_json(vacant(folder, BESIDE) / RECIPE, asdict(recipe))
        made = encoder.identity
        index = Index.create(folder, made.dim, recipe.codec, made.label, recipe.sketch, fitted, BESIDE)
        return cls(index, recipe, encoder)

    @classmethod
    def open(cls, folder: str | Path, encoder: Encoder | None = None) -> Library:
        """One that exists."""
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
        encoder = encoder or loading.load_encoder(recipe.encoder)
        return cls(Index.open(folder, encoder.identity.label), recipe, encoder)

    # ---- writing ----------------------------------------------------------------------------------------------------

    def put(self, texts: Iterable[Text], done: Callable[[int], None] = lambda passages: None) -> int:
        """Add texts, or replace those of the same name; unchanged ones are passed over. Returns how many were written.

        Every 512 passages are a commit. A text that was cut off in the middle is written again by the next call.

        Args:
            done: called with the number of passages that were encoded since the last call.

        Raises:
            ValueError: metadata that are no JSON, or in a field of the library's own.
        """
        written = 0
        rows: list[Row] = []
        with self._writing:
            for text in texts:
                own = OWN & text.metadata.keys()
                if own:
                    raise ValueError(
                        f"metadata of {text.name!r}: {min(own)!r} is a field of the library's own; rename it"
                    )
                if any(i.startswith(f"{text.name}#") for i, _, _ in rows):
                    self._commit(rows, done)
                    rows = []
                if self._current(text):
                    continue
                pieces = text.pieces(self._too_long)
                note = {**text.metadata, "document": text.name, "digest": text.digest, "of": len(pieces)}
                for i, piece in enumerate(pieces):
                    rows.append((f"{text.name}#{i}", piece.text, {**note, "span": piece.span, "text": piece.text}))
                    if len(rows) == COMMIT:
                        self._commit(rows, done)
                        rows = []
                beyond = self._of(text.name, len(pieces))
                if beyond:
                    self._commit(rows, done)
                    rows = []
                    self.index.delete(beyond)
                written += 1
            self._commit(rows, done)
            self._seen = self._stamp()
        return written

    def remove(self, names: Iterable[str]) -> int:
        """Remove texts by name; returns how many there were."""
        with self._writing:
            gone = {name: self._of(name) for name in listed(names)}
            self.index.delete([i for ids in gone.values() for i in ids])
            self._seen = self._stamp()
            return sum(bool(ids) for ids in gone.values())

    def count(self, texts: Iterable[Text]) -> None:
        """Learn how rare tokens are, for methods that ask for it; texts that are put afterwards go by it."""
        if self.recipe.counts:
            self.learn(self.counted(texts))

    def counted(self, texts: Iterable[Text]) -> Frequencies:
        """How rare the tokens of texts are.

        Raises:
            ValueError: the encoder does not say which tokens a text has.
        """
        reader = getattr(self.encoder, "reader", None)
        if reader is None:
            raise ValueError(
                f"method={self.recipe.method!r} counts tokens, and this encoder names none; choose another"
            )
        counts = Frequencies()
        for text in texts:
            for piece in text.pieces(self._too_long):
                ids = torch.tensor(reader.read([piece.text], False)[0].ids)
                counts.add(
                    Encoded(
                        torch.zeros(len(ids), 1),
                        ends(torch.tensor([len(ids)])),
                        ids[:, None].expand(-1, 2),
                        {"ids": ids},
                    )
                )
        return counts

    def learn(self, counts: Frequencies) -> None:
        """Go by what was counted, here or in all libraries of one collection."""
        write_tensors(self.index.folder / COUNTS, {"texts": torch.tensor(counts.texts), "counts": counts.counts})
        self.__dict__.pop("_frequencies", None)

    def _commit(self, rows: Sequence[Row], done: Callable[[int], None]) -> None:
        vectors, notes = [], []
        for start in range(0, len(rows), TOGETHER):
            part = rows[start : start + TOGETHER]
            encoded = self._encode([text for _, text, _ in part])
            for i, (_, _, note) in enumerate(part):
                vectors.append(encoded[i])
                spans = encoded.spans[encoded.offsets[i] : encoded.offsets[i + 1]]
                notes.append({**note, "spans": spans.flatten().tolist()})
            done(len(part))
        if rows:
            self.index.update(vectors, [i for i, _, _ in rows], notes)

    def _encode(self, texts: list[str]) -> Encoded:
        encoded = self.encoder.documents(texts, sorted(self._needs))
        if self.recipe.whole:
            return encoded
        if self.recipe.counts:
            encoded = self._frequencies.mark(encoded)
        return reduce(encoded, self.recipe.method, self.recipe.keep)

    @cached_property
    def _frequencies(self) -> Frequencies:
        file = self.index.folder / COUNTS
        if not file.exists():
            raise ValueError(
                f"method={self.recipe.method!r} needs the counts of tokens; call count with the texts first"
            )
        held = map_tensors(file)
        return Frequencies(int(held["texts"]), held["counts"])

    def _too_long(self, texts: list[str]) -> list[bool]:
        """Which texts would lose their end in the encoder."""
        reader = getattr(self.encoder, "reader", None)
        if reader is None:
            return [False] * len(texts)
        return [len(t.ids) >= reader.reading.document_length for t in reader.read(texts, False)]

    # ---- reading ----------------------------------------------------------------------------------------------------

    def search(
        self, query: str, k: int = 10, where: Where | None = None, keep: int | float | None = None,
        rerank: int | None = None,
    ) -> list[SearchResult]:  # fmt: skip
        """The passages of the highest MaxSim, and what each token of the query was matched with.

        Args:
            where: conditions on metadata (see ``filters.Where``).
            keep: show the effect of fewer vectors: the 50 best passages (or ``k``, if more) are ranked again by so many of
                their stored vectors.
            rerank: see :meth:`Index.search`.

        Raises:
            ValueError: the query is empty, or a budget or filter is out of range.
        """
        self.refresh()
        tokens = asked(self.encoder.queries([question(query)]))
        hits = self.index.search(tokens.vectors, k if keep is None else max(k, CANDIDATES), where, rerank)
        return rank_results(tokens, with_vectors(self.index, hits), k, keep, self.recipe)

    def names(self) -> set[str]:
        """The names of all texts."""
        return {i.rpartition("#")[0] for i in self.index.ids()}

    def get(self, name: str) -> list[dict[str, Any]]:
        """The passages of a text, each with its id, text, span and metadata; none where there is no such text."""
        self.refresh()
        ids = self._of(name)
        return [
            {"id": i, "text": m["text"], "span": m["span"], "metadata": {k: v for k, v in m.items() if k not in OWN}}
            for i, m in zip(ids, self.index.metadata(ids), strict=True)
            if m
        ]

    def refresh(self) -> None:
        """See what other processes have committed."""
        stamp = self._stamp()
        if stamp != self._seen and self._writing.acquire(blocking=False):
            try:
                self.index.refresh()
                self._seen = stamp
            finally:
                self._writing.release()

    def close(self) -> None:
        """Let others write."""
        with self._writing:
            self.index.close()

    def __len__(self) -> int:
        return len(self.index)

    def _current(self, text: Text) -> bool:
        first = self.index.metadata([f"{text.name}#0"])[0]
        if not first or first.get("digest") != text.digest:
            return False
        every = self.index.metadata([f"{text.name}#{i}" for i in range(first["of"] + 1)])
        return every[-1] is None and all(m and m.get("digest") == text.digest for m in every[:-1])

    def _of(self, name: str, start: int = 0) -> list[str]:
        """The ids of a text's passages from one on; they are without gaps."""
        return list(self._walk(name, start))

    def _walk(self, name: str, start: int) -> Iterator[str]:
        while True:
            ids = [f"{name}#{i}" for i in range(start, start + TOGETHER)]
            for i, held in zip(ids, self.index.metadata(ids), strict=True):
                if held is None:
                    return
                yield i
            start += TOGETHER

    def _stamp(self) -> tuple[int, int] | None:
        with suppress(OSError):
            about = (self.index.folder / MANIFEST).stat()
            return about.st_mtime_ns, about.st_ino
        return None
