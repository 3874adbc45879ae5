"""Reader: the documents of an index as they are in one committed state, searched and told of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokensieve.retrieval.errors import Damaged, Gone
from tokensieve.retrieval.index import search, snapshot, tune
from tokensieve.retrieval.index.filters import Where
from tokensieve.retrieval.index.manifest import refuse_other
from tokensieve.retrieval.index.validation import query_of, whole
from tokensieve.retrieval.storage import VectorFormat


@dataclass(frozen=True)
class Document:
    """A document as it is added or stored: its id, its vectors ``(n, dim)``, and a dict of JSON values."""

    id: str
    vectors: Tensor
    metadata: Mapping[str, Any]


class Reader:
    """What is asked of an index without writing to it."""

    def __init__(self, folder: Path, state: snapshot.Snapshot) -> None:
        self.folder, self._state = folder, state

    @torch.no_grad()
    def search(self, query: Any, k: int = 10, where: Where | None = None, rerank: int | None = None) -> list[Any]:
        """The k documents of the highest MaxSim with a query ``(Q, dim)``, fewer where there are fewer.

        Many queries, ``(B, Q, dim)`` or a list of ``(q_i, dim)``, give a list of lists.

        Args:
            where: conditions on metadata, applied before anything is scored (see ``filters.Where``).
            rerank: score exactly only so many documents, those whose sketches score best; 0 for all. By default what
                :meth:`Index.tune` has measured for as many hits, and all of an index that was never tuned.
        """
        single, queries = query_of(query, k, where, self.dim)
        if rerank is not None:
            whole("rerank", rerank, 0)
        state = self._state
        admitted = [v.admitted(where) for v in state.views]
        if rerank is None:
            rerank = tune.rerank(state, admitted, k)
        if rerank and state.sketch and state.views:
            scores = search.two_stage(state.views, state.codec, state.sketch, queries, admitted, max(rerank, k))
        else:
            scores = search.exact(state.views, state.codec, queries, admitted)
        hits = search.best(state.views, scores, k) or [[] for _ in range(len(queries))]
        return hits[0] if single else hits

    def get(self, id: str) -> Document:
        """A document by its id; vectors as the codec gives them back."""
        state = self._state
        place = state.find([id])[0]
        if place is None:
            raise KeyError(f"there is no document {id!r}")
        segment, docs = state.views[place[0]].segment, torch.tensor([place[1]])
        if not bool(segment.tokens.sound(docs).all()):
            raise Damaged(f"document {id!r} cannot be read: {', '.join(state.views[place[0]].damaged)}")
        return Document(id, state.codec.decode(segment.tokens.take(docs)[0]), segment.metadata(place[1]))

    def metadata(self, ids: Sequence[str]) -> list[dict[str, Any] | None]:
        """The metadata of documents, None for those that are not there; no vector is read."""
        state = self._state
        return [None if p is None else state.views[p[0]].segment.metadata(p[1]) for p in state.find(ids)]

    def whole(self, ids: Sequence[str]) -> bool:
        """Whether all these documents are there, with all their vectors."""
        state = self._state
        return all(
            p is not None and bool(state.views[p[0]].segment.whole(torch.tensor([p[1]])).all()) for p in state.find(ids)
        )

    def ids(self) -> Iterator[str]:
        """The ids of all documents, in no particular order."""
        for view in (v for v in self._state.views if v.segment.has_ids()):
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
        return [*self._state.lost.values(), *(b for v in self._state.views for b in v.damaged)]

    @property
    def identity(self) -> str | None:
        """What tells it from another that stood, or will stand, in its folder; None for the first format."""
        return self._state.manifest["id"]

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
            view.sound()
        return self.damaged

    def refresh(self) -> None:
        """See what other processes have committed, also where they have made the index anew.

        Raises:
            Incompatible: it was made anew for another model, or for vectors of another width.
            Gone: there is no index any more.
        """
        try:
            state = snapshot.read(self.folder, self._state)
        except FileNotFoundError as problem:
            raise Gone(f"the index in {self.folder} is gone; what was read of it is not served any more") from problem
        refuse_other(self.folder, self._state.manifest, state.manifest)
        self._state = state
