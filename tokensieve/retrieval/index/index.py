"""Index: documents of token vectors in a folder, searched by MaxSim."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokensieve.retrieval.errors import Damaged, Incompatible
from tokensieve.retrieval.index import search, snapshot, tune
from tokensieve.retrieval.index.filters import Where
from tokensieve.retrieval.index.validation import (
    WritableStore,
    check_names,
    incoming,
    listed,
    numbered,
    query_of,
    refuse_held,
    whole,
)
from tokensieve.retrieval.index.writer import SEGMENT, Writer
from tokensieve.retrieval.scoring.ragged import Documents, Ragged
from tokensieve.retrieval.scoring.sketch import sketch as make_sketch
from tokensieve.retrieval.storage import VectorFormat, vector_format


@dataclass(frozen=True)
class Document:
    """A document as it is added or stored: its id, its vectors ``(n, dim)``, and a dict of JSON values."""

    id: str
    vectors: Tensor
    metadata: Mapping[str, Any]


class Index(WritableStore):
    """Documents in a folder: immutable segments named by a manifest, which each commit replaces at once.

    Any number of processes may read while one writes; a reader sees one committed state until :meth:`refresh`. The first
    writing call takes the folder's lock, which :meth:`close` gives back. Threads may share an Index.

    Example:
        >>> index = Index.create("my.index", dim=128, codec="int4")             # doctest: +SKIP
        >>> index.add([torch.randn(30, 128)], ids=["a"], metadata=[{"lang": "en"}])  # doctest: +SKIP
        >>> index.search(torch.randn(8, 128), k=5, where={"lang": "en"})        # doctest: +SKIP
    """

    def __init__(self, folder: Path, state: snapshot.Snapshot) -> None:
        self.folder, self._state = folder, state
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
        beside: Collection[str] = (),
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
            beside: names of files that may be in the folder; where there are others, it is refused.
        """
        folder = Path(folder)
        made = vector_format(codec, dim)
        if sketch is not None:
            make_sketch(sketch, made.dim)
        snapshot.start(snapshot.vacant(folder, beside), fitted, dim=dim, codec=codec, model=model, sketch=sketch)
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

    def delete(self, ids: Sequence[str]) -> int:
        """Delete documents in one commit; ids that are not there are passed over. Returns how many were deleted."""
        ids = listed(ids)
        with self._writing:
            writer = self._write()
            gone = [i for i, place in zip(ids, writer.state.find(ids), strict=True) if place is not None]
            if gone:
                self._state = writer.change(Ragged.of(torch.empty(0, 0, self.dim)), [], [], gone)
            return len(set(gone))

    def compact(self) -> None:
        """Rewrite segments without deleted documents, and small ones as one."""
        with self._writing:
            self._state = self._write().compact()

    @torch.no_grad()
    def search(self, query: Any, k: int = 10, where: Where | None = None, rerank: int | None = None) -> list[Any]:
        """The k documents of the highest MaxSim with a query ``(Q, dim)``, fewer where there are fewer.

        Many queries, ``(B, Q, dim)`` or a list of ``(q_i, dim)``, give a list of lists.

        Args:
            where: conditions on metadata, applied before anything is scored (see ``filters.Where``).
            rerank: score exactly only so many documents, those whose sketches score best; 0 for all. By default what
                :meth:`tune` has measured, and all of an index that was never tuned.
        """
        single, queries = query_of(query, k, where, self.dim)
        if rerank is not None:
            whole("rerank", rerank, 0)
        state = self._state
        admitted = [v.admitted(where) for v in state.views]
        if rerank is None:
            rerank = tune.rerank(state, admitted)
        if rerank and state.sketch and state.views:
            scores = search.two_stage(state.views, state.codec, state.sketch, queries, admitted, max(rerank, k))
        else:
            scores = search.exact(state.views, state.codec, queries, admitted)
        hits = search.best(state.views, scores, k) or [[] for _ in range(len(queries))]
        return hits[0] if single else hits

    def tune(self, queries: Any = None, goal: float = 0.99) -> dict[str, Any]:
        """Measure, on this machine, from how many documents candidates and reranking beat scoring all, and how many to rerank.

        The choice is kept with the index, and holds until that has twice the documents.

        Args:
            queries: ``(B, Q, dim)`` or a list; documents of the index stand in for them by default.
            goal: the share of the ten best documents that must be found.
        """
        if not 0 < goal <= 1:
            raise ValueError(f"goal is a share of documents, above 0 and at most 1, not {goal!r}")
        given = None if queries is None else query_of(queries, 1, None, self.dim)[1]
        with self._writing:
            writer = self._write()
            plan = tune.measure(writer.state, given, goal)
            self._state = writer.change(Ragged.of(torch.empty(0, 0, self.dim)), [], [], [], plan=plan)
        return plan

    def get(self, id: str) -> Document:
        """A document by its id; vectors as the codec gives them back."""
        state = self._state
        place = state.find([id])[0]
        if place is None:
            raise KeyError(f"there is no document {id!r}")
        segment, docs = state.views[place[0]].segment, torch.tensor([place[1]])
        if not bool(segment.tokens.sound(docs).all()):
            raise Damaged(f"document {id!r} cannot be read: {', '.join(segment.damaged)}")
        return Document(id, state.codec.decode(segment.tokens.take(docs)[0]), segment.metadata(place[1]))

    def metadata(self, ids: Sequence[str]) -> list[dict[str, Any] | None]:
        """The metadata of documents, None for those that are not there; no vector is read."""
        state = self._state
        return [None if p is None else state.views[p[0]].segment.metadata(p[1]) for p in state.find(ids)]

    def ids(self) -> Iterator[str]:
        """The ids of all documents, in no particular order."""
        for view in self._state.views:
            yield from (view.segment.id(d) for d in view.alive.nonzero()[:, 0].tolist())

    def __len__(self) -> int:
        return len(self._state)

    def __contains__(self, id: str) -> bool:
        return self._state.find([id])[0] is not None

    @property
    def dim(self) -> int:
        return self._state.manifest["dim"]

    @property
    def codec(self) -> VectorFormat:
        return self._state.codec

    @property
    def model(self) -> str | None:
        return self._state.manifest["model"]

    @property
    def plan(self) -> dict[str, Any] | None:
        """What :meth:`tune` has measured."""
        return self._state.manifest["plan"]

    @property
    def size(self) -> dict[str, int]:
        """Documents, vectors and bytes (see ``Snapshot.size``)."""
        return self._state.size()

    @property
    def damaged(self) -> list[str]:
        """What has been found damaged so far, by name: segments, and blocks of segments. The rest is searched."""
        return [*self._state.lost.values(), *(b for v in self._state.views for b in v.segment.damaged)]

    @property
    def stats(self) -> dict[str, Any]:
        """What it holds and how: counts, and bytes of the tokens' codes, of the sketches and of all files."""
        manifest, segments = self._state.manifest, [v.segment for v in self._state.views]
        return {
            "documents": len(self), "tokens": sum(s["tokens"] for s in manifest["segments"]),
            "segments": len(manifest["segments"]), "deleted": sum(s["deleted"] for s in manifest["segments"]),
            "token_bytes": sum(s.tokens.nbytes for s in segments),
            "sketch_bytes": sum(s.sketch.nbytes for s in segments if s.sketch),
            "file_bytes": sum(s["size"] for s in manifest["segments"]),
            **{k: manifest[k] for k in ("codec", "sketch", "model", "dim", "plan")},
        }  # fmt: skip

    def verify(self) -> list[str]:
        """Check everything; returns ``damaged``."""
        for view in self._state.views:
            view.segment.sound()
        return self.damaged

    def refresh(self) -> None:
        """See what other processes have committed."""
        self._state = snapshot.read(self.folder, self._state)

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
