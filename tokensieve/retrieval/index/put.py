"""Put: how texts become passages, and passages vectors in an index."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from tokensieve.core.method_registry import get_method
from tokensieve.retrieval.encoders.encoded import Encoded, Encoder, ends
from tokensieve.retrieval.encoders.reduce import Frequencies, reduce
from tokensieve.retrieval.index import marks, questions
from tokensieve.retrieval.index.index import Index
from tokensieve.retrieval.index.recipe import Recipe
from tokensieve.retrieval.index.segment import metadata_json
from tokensieve.retrieval.index.tune import KS
from tokensieve.retrieval.index.validation import listed
from tokensieve.retrieval.sources.texts import Piece, Text
from tokensieve.retrieval.storage.files import map_tensors, write_tensors

COUNTS = "frequencies"
TOGETHER = 64
"""Passages encoded between two reports of progress."""
COMMIT = 512
"""Passages of a commit: what an interrupted build has to do again."""


@dataclass(frozen=True)
class Row:
    """A passage to be stored: its id, what is encoded, how much of that stands above its text, its metadata."""

    id: str
    said: str
    above: int
    note: dict[str, Any]


class Putting:
    """A library's writing calls, which take turns."""

    index: Index
    recipe: Recipe
    _writing: threading.RLock
    read: Counter[str]
    unknown: Counter[str]
    """Of each text that was written by this object, the tokens that were read, and those that the encoder has no word for."""

    @property
    def encoder(self) -> Encoder:
        """What texts and queries are encoded by."""
        raise NotImplementedError

    def put(self, texts: Iterable[Text], done: Callable[[int], None] = lambda passages: None) -> int:
        """Add texts, or replace those of the same name; unchanged ones are passed over. Returns how many were written.

        Every 512 passages are a commit. A text that was cut off in the middle is written again by the next call. One without a
        word holds no passage: what was there by its name is removed, and it is not counted.

        Args:
            done: called with the number of passages that were encoded since the last call.

        Raises:
            ValueError: metadata that are no JSON, or in a field of the library's own.
        """
        written = 0
        rows: list[Row] = []
        with self._writing:
            for text in texts:
                _refuse_own(text)
                if any(row.id.startswith(f"{text.name}#") for row in rows):
                    self._commit(rows, done)
                    rows = []
                if self._current(text):
                    continue
                pieces = self._pieces(text)
                note = {**text.metadata, "document": text.name, "digest": text.digest, "of": len(pieces)}
                note |= {marks.FILE: True} if text.file else {}
                for i, piece in enumerate(pieces):
                    rows.append(_row(f"{text.name}#{i}", piece, note, text.extracted))
                    if len(rows) == COMMIT:
                        self._commit(rows, done)
                        rows = []
                beyond = self._of(text.name, len(pieces))
                if beyond:
                    self._commit(rows, done)
                    rows = []
                    self.index.delete(beyond)
                written += bool(pieces)
            self._commit(rows, done)
            self._written()
        return written

    def remove(self, names: Iterable[str]) -> int:
        """Remove texts by name; returns how many there were."""
        with self._writing:
            gone = {name: self._of(name) for name in listed(names)}
            self.index.delete([i for ids in gone.values() for i in ids])
            self._written()
            return sum(bool(ids) for ids in gone.values())

    def tune(self) -> dict[str, Any]:
        """Measure how many candidates must be scored (see :meth:`Index.tune`), by short sentences of the stored texts."""
        with self._writing:
            # Of few passages all are scored.
            ids, texts = questions.sampled(self.index) if len(self.index) > max(KS) else ([], [])
            asked = self.encoder.queries(texts).ragged if texts else None
            plan = self.index.tune(asked, without=ids if texts else None)
            self._written()
        return plan

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
            for piece in self._pieces(text):
                ids = torch.tensor(reader.read([piece.said], False)[0].ids)
                one = ends(torch.tensor([len(ids)]))
                counts.add(Encoded(torch.zeros(len(ids), 1), one, ids[:, None].expand(-1, 2), {"ids": ids}))
        return counts

    def learn(self, counts: Frequencies) -> None:
        """Go by what was counted, here or in all libraries of one collection."""
        write_tensors(self.index.folder / COUNTS, {"texts": torch.tensor(counts.texts), "counts": counts.counts})
        self.__dict__.pop("_frequencies", None)

    def _pieces(self, text: Text) -> list[Piece]:
        reader = getattr(self.encoder, "reader", None)
        if reader is None:
            return text.pieces(overlap=self.recipe.overlap)
        limit = reader.reading.document_length - 1
        return text.pieces(lambda texts: [s.tokens for s in reader.sizes(texts, False)], limit, self.recipe.overlap)

    def _commit(self, rows: Sequence[Row], done: Callable[[int], None]) -> None:
        vectors, notes = [], []
        for start in range(0, len(rows), TOGETHER):
            part = rows[start : start + TOGETHER]
            encoded = self._encode(part)
            for i, row in enumerate(part):
                vectors.append(encoded[i])
                spans = encoded.spans[encoded.offsets[i] : encoded.offsets[i + 1]]
                # What stands above a passage has its characters before the first; markers have none.
                spans = torch.where(spans >= 0, spans - row.above, spans)
                # A vector of both is shown in the text.
                spans[:, 0] = torch.where(spans[:, 1] > 0, spans[:, 0].clamp(min=0), spans[:, 0])
                notes.append({**row.note, "spans": spans.flatten().tolist()})
            done(len(part))
        if rows:
            self.index.put(vectors, [row.id for row in rows], notes)

    def _encode(self, rows: Sequence[Row]) -> Encoded:
        method = get_method(self.recipe.method)
        encoded = self.encoder.documents([row.said for row in rows], sorted(need.name for need in method.needs))
        ids, none = encoded.signals.get("ids"), getattr(getattr(self.encoder, "reader", None), "unknown", None)
        for i, row in enumerate(rows):
            own = slice(int(encoded.offsets[i]), int(encoded.offsets[i + 1]))
            self.read[row.note["document"]] += own.stop - own.start
            if ids is not None and none is not None:
                self.unknown[row.note["document"]] += int((ids[own] == none).sum())
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

    def _current(self, text: Text) -> bool:
        """Whether a text is held as it is, and all of it can be read."""
        first = self.index.metadata([f"{text.name}#0"])[0]
        if not first or first.get("digest") != text.digest or marks.mirrored(first) != text.file:
            return False
        ids = [f"{text.name}#{i}" for i in range(first["of"] + 1)]
        every = self.index.metadata(ids)
        same = every[-1] is None and all(m and m.get("digest") == text.digest for m in every[:-1])
        return same and self.index.whole(ids[:-1])

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

    def _written(self) -> None:
        """Take what this object has committed for seen."""


def _row(id: str, piece: Piece, note: Mapping[str, Any], extracted: bool) -> Row:
    own = {"span": piece.span, "text": piece.text, marks.CONTEXT: piece.context, marks.PLACE: piece.place}
    gap = {marks.GAP: piece.gap} if extracted else {}
    return Row(id, piece.said, len(piece.said) - len(piece.text), {**note, **own, **gap})


def _refuse_own(text: Text) -> None:
    metadata_json(repr(text.name), text.metadata)
    own = marks.claimed(text.metadata)
    if own:
        raise ValueError(f"metadata of {text.name!r}: {own!r} is a field of the library's own; rename it")
