"""Index: documents of token vectors in a folder, searched by MaxSim."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokensieve.retrieval.errors import Incompatible
from tokensieve.retrieval.index import snapshot, tune
from tokensieve.retrieval.index.manifest import creating, start
from tokensieve.retrieval.index.reader import Document, IndexReader
from tokensieve.retrieval.index.validation import (
    WritableStore,
    check_names,
    incoming,
    listed,
    numbered,
    query_of,
    refuse_held,
)
from tokensieve.retrieval.index.writer import SEGMENT, Writer
from tokensieve.retrieval.scoring.ragged import Documents, Ragged
from tokensieve.retrieval.scoring.sketch import sketch as make_sketch
from tokensieve.retrieval.storage import vector_format
from tokensieve.retrieval.storage.files import write_json


class Index(IndexReader, WritableStore):
    """Documents in a folder: immutable segments named by a manifest, which each commit replaces at once.

    Any number of processes may read while one writes; a reader sees one committed state until :meth:`refresh`. The first
    writing call takes the folder's lock, which :meth:`close` gives back. Threads may share an Index.

    Example:
        >>> index = Index.create("my.index", dim=128, codec="int4")             # doctest: +SKIP
        >>> index.add([torch.randn(30, 128)], ids=["a"], metadata=[{"lang": "en"}])  # doctest: +SKIP
        >>> index.search(torch.randn(8, 128), k=5, where={"lang": "en"})        # doctest: +SKIP
    """

    def __init__(self, folder: Path, state: snapshot.Snapshot) -> None:
        super().__init__(folder, state)
        self._writer: Writer | None = None
        self._writing = threading.RLock()

    @classmethod
    def create(
        cls,
        folder: str | Path,
        dim: int,
        codec: str = "float16",
        model: str | None = None,
        sketch: str | None = "pooled",
        fitted: Mapping[str, Tensor] | None = None,
        beside: Mapping[str, Any] | None = None,
    ) -> Index:
        """A new, empty index.

        Args:
            dim: dimensions of a vector.
            codec: how vectors are stored, one of ``tokensieve.retrieval.storage.FORMATS``.
            model: the name of the encoder, which :meth:`open` compares.
            sketch: what candidates are found by, one of ``retrieval.scoring.sketch.SKETCHES``; None for exact search
                only.
            fitted: the state of a codec that has learnt (``index.codec.state``), for several indexes that score alike; by
                default it learns from what is added first.
            beside: JSON files that stand beside the index by their names, written before it is there; None for names of
                files that may be in the folder. Where there are others, it is refused.
        """
        folder, beside = Path(folder), beside or {}
        made = vector_format(codec, dim)
        if sketch is not None:
            make_sketch(sketch, made.dim)
        with creating(folder, beside):
            for name, value in beside.items():
                if value is not None:
                    write_json(folder / name, value)
            start(folder, fitted, dim=dim, codec=codec, model=model, sketch=sketch)
        return cls(folder, snapshot.read(folder))

    @classmethod
    def open(cls, folder: str | Path, model: str | None = None, dim: int | None = None) -> Index:
        """An index that exists; ``model`` and ``dim``, where given, must be those it was made for."""
        state = snapshot.read(Path(folder))
        for name, asked in (("model", model), ("dim", dim)):
            made = state.manifest[name]
            if asked is not None and asked != made:
                raise Incompatible(f"{folder} was made for {name} {made!r}, not {asked!r}; index the documents anew")
        return cls(Path(folder), state)

    def extend(self, documents: Iterable[Document]) -> int:
        """Add a stream of documents in bounded memory, in commits of about 2^17 tokens; returns how many there were."""
        total, held = 0, 0
        batch: list[Document] = []
        for document in documents:
            if held + len(document.vectors) > SEGMENT and batch:
                total += self._add_all(batch)
                batch, held = [], 0
            batch.append(document)
            held += len(document.vectors)
        return total + (self._add_all(batch) if batch else 0)

    def put(self, vectors: Documents, ids: list[str], metadata: Sequence[Mapping[str, Any]]) -> None:
        """As :meth:`update`, with marks of the library's own among the metadata."""
        self._put(vectors, ids, metadata, replace=True)

    def delete(self, ids: Sequence[str]) -> int:
        """Delete documents in one commit; ids that are not there are passed over. Returns how many were deleted."""
        ids = listed(ids)
        with self._writing:
            writer = self._write()
            gone = [i for i, place in zip(ids, writer.state.find(ids), strict=True) if place is not None]
            if gone:
                self._state = writer.change(Ragged.of(torch.empty(0, 0, self.dim)), [], [], gone)
            return len(set(gone))

    def compact(self, forget: bool = False) -> None:
        """Rewrite segments without deleted documents, and small ones as one; afterwards nothing deleted is on disk.

        Args:
            forget: let go of segments whose documents cannot be found (missing files, damaged ids).
        """
        with self._writing:
            self._state = self._write().compact(forget)

    def mend(self) -> None:
        """Let go of what is damaged and no longer needed; for a folder's mirror, once all its files are here again."""
        with self._writing:
            self._state = self._write().mend()

    def tune(
        self, queries: Any = None, goal: float = 0.99, without: Sequence[str | None] | None = None
    ) -> dict[str, Any]:
        """Measure how many candidates must be scored exactly to find what scoring all would find, for 10, 50 and 100 hits.

        The choice is kept with the index, and holds until that has twice the documents. It is the same on every machine.

        Args:
            queries: ``(B, Q, dim)`` or a list; stretches of stored documents stand in for them by default.
            goal: the share of the best documents that must be found, on the mean; a margin is added.
            without: for each query the id of the document that it was made of, which would find itself; None for none.
        """
        if not 0 < goal <= 1:
            raise ValueError(f"goal is a share of documents, above 0 and at most 1, not {goal!r}")
        given = None if queries is None else query_of(queries, 1, None, self.dim)[1]
        if without is not None and (given is None or len(without) != len(given)):
            raise ValueError(f"without names {len(without)} documents; it names one for each query")
        with self._writing:
            writer = self._write()
            plan = tune.measure(writer.state, given, goal, without)
            self._state = writer.change(Ragged.of(torch.empty(0, 0, self.dim)), [], [], [], plan=plan)
        return plan

    def begin(self) -> None:
        """Take the lock now, before work whose end is a writing call.

        Raises:
            Locked: another writer has it.
        """
        with self._writing:
            self._write()

    def close(self) -> None:
        """Let others write."""
        with self._writing:
            if self._writer:
                self._writer.close()
                self._writer = None

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self) -> Writer:
        if self._writer is None:
            self._writer = Writer(self.folder)
            self._state = self._writer.state
        return self._writer

    def _add_all(self, batch: Sequence[Document]) -> int:
        self.add([d.vectors for d in batch], [d.id for d in batch], [d.metadata for d in batch])
        return len(batch)

    def _put(
        self, vectors: Documents, ids: list[str] | None, metadata: Sequence[Mapping[str, Any]] | None, replace: bool
    ) -> list[str]:
        docs, notes = incoming(vectors, metadata, self.dim)
        with self._writing:
            writer = self._write()
            more: dict[str, Any] = {}
            if ids is None:
                first, names = numbered(
                    writer.state.manifest["next_id"], len(docs), lambda names: any(writer.state.find(names))
                )
                more = {"next_id": first + len(docs)}
            else:
                names = ids
            check_names(names, len(docs), len(notes))
            held = [i for i, place in zip(names, writer.state.find(names), strict=True) if place is not None]
            if not replace:
                refuse_held(held)
            if len(docs):
                self._state = writer.change(docs, names, notes, held, **more)
        return names
