"""The reader: the documents of an index as they are in one committed state, searched and told of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokensieve.retrieval.errors import Damaged, Gone
from tokensieve.retrieval.index import search, snapshot, tune
from tokensieve.retrieval.index.filters import Where, check, fields
from tokensieve.retrieval.index.fusion import Candidate, Fuse, candidates, check_fuse, depth, first, fused, leading
from tokensieve.retrieval.index.lexical import TERMS, WordCounts, bm25, holding, word_counts
from tokensieve.retrieval.index.manifest import refuse_other
from tokensieve.retrieval.index.search import Hit
from tokensieve.retrieval.index.validation import query_of, whole
from tokensieve.retrieval.scoring.ragged import Ragged
from tokensieve.retrieval.scoring.words import phrases
from tokensieve.retrieval.storage import VectorFormat

NONE = torch.empty(0, dtype=torch.long)
"""The places of no documents."""


@dataclass(frozen=True)
class Document:
    """A document as it is added or stored: its id, its vectors ``(n, dim)``, and a dict of JSON values."""

    id: str
    vectors: Tensor
    metadata: Mapping[str, Any]


class IndexReader:
    """What is asked of an index without writing to it."""

    def __init__(self, folder: Path, state: snapshot.Snapshot) -> None:
        self.folder, self._state = folder, state

    @torch.no_grad()
    def search(
        self,
        query: Any,
        k: int = 10,
        where: Where | None = None,
        rerank: int | None = None,
        *,
        words: str | Sequence[str] | None = None,
        fuse: Fuse = "none",
        offset: int = 0,
        min_score: float | None = None,
    ) -> list[Any]:
        """The k documents of the highest MaxSim with a query ``(Q, dim)``, fewer where there are fewer.

        Many queries, ``(B, Q, dim)`` or a list of ``(q_i, dim)``, give a list of lists.

        Args:
            where: conditions on metadata, applied before anything is scored (see ``filters.Where``).
            rerank: score exactly only so many documents, those whose sketches score best; 0 for all. By default what
                :meth:`Index.tune` has measured for as many hits, and all of an index that was never tuned.
            words: the query's text, or those of the queries: what stands in double quotes must stand in the text of a document
                (its metadata's ``text``), and the rest counts as ``fuse`` says.
            fuse: how BM25 counts beside MaxSim: "none", "rrf" (reciprocal rank fusion), or a share of the score from 0 to 1.
            offset: how many of the best are passed over, for pages of results.
            min_score: leave out documents of a lower MaxSim.
        """
        single, queries = query_of(query, k, where, self.dim)
        check_fuse(fuse)
        whole("offset", offset, 0)
        if rerank is not None:
            whole("rerank", rerank, 0)
        texts = [words] if isinstance(words, str) else list(words or ())
        if len(texts) != (len(queries) if texts or fuse != "none" else 0):
            raise ValueError(
                f"words are {len(texts)} texts for {len(queries)} queries; fuse={fuse!r} asks for one each"
            )
        state, most = self._state, k + offset
        admitted = [v.admitted(where) for v in state.views]
        if not texts:
            hits = self._by_sense(state, queries, admitted, most, rerank)
        else:
            hits = []
            for b, text in enumerate(texts):
                one = Ragged(queries[b], queries.offsets[b : b + 2] - queries.offsets[b])
                seen = self._holding(state, text, admitted)
                if fuse == "none":
                    hits += self._by_sense(state, one, seen, most, rerank)
                else:
                    found = fused(self._candidates(state, one, text, seen, most, rerank, fuse), most, fuse)
                    held = _metadata(state, [h.id for h in found])
                    hits.append([replace(h, metadata=m or {}) for h, m in zip(found, held, strict=True)])
        hits = [at_least(found, min_score)[offset:] for found in hits]
        return hits[0] if single else hits

    @torch.no_grad()
    def candidates(
        self, query: Any, words: str, k: int, where: Where | None, rerank: int | None, fuse: Fuse, counts: WordCounts
    ) -> list[Candidate]:
        """What of it may be among the k best of a collection of which it is a part, by MaxSim or by words (see ``fusion``).

        Args:
            counts: the sum of :meth:`word_counts` over all parts.
        """
        _, one = query_of(query, k, where, self.dim)
        state = self._state
        seen = self._holding(state, words, [v.admitted(where) for v in state.views])
        return self._candidates(state, one, words, seen, k, rerank, fuse, counts)

    def word_counts(self, words: str) -> WordCounts:
        """What BM25 counts of a query's words."""
        return word_counts(self._state.views, words)

    def _candidates(
        self, state: snapshot.Snapshot, one: Ragged, text: str, seen: list[Tensor], k: int, rerank: int | None, fuse: Fuse,
        counts: WordCounts | None = None,
    ) -> list[Candidate]:  # fmt: skip
        # What stands far down a ranking counts little: as many are scored exactly as k hits alone would ask for.
        rerank = tune.rerank(state, seen, k) if rerank is None else rerank
        words = torch.cat([NONE, *bm25(state.views, text, seen, counts)]).numpy()
        said = first(state, words, 0.0, depth(k))
        # Among the k best by ranks is none that only words have found, and that is not among their k best.
        besides = torch.from_numpy(leading(words, said, k) if fuse == "rrf" else said)
        like = self._scores(state, one, seen, depth(k), rerank, besides)
        return candidates(state, torch.cat([NONE[:, None], *like])[:, 0].numpy(), words, said, depth(k))

    def _holding(self, state: snapshot.Snapshot, text: str, admitted: list[Tensor]) -> list[Tensor]:
        """Documents in which all phrases of a query stand."""
        said = phrases(text)
        return [a & holding(v, said) for a, v in zip(admitted, state.views, strict=True)] if said else admitted

    def _by_sense(
        self, state: snapshot.Snapshot, queries: Ragged, admitted: list[Tensor], k: int, rerank: int | None
    ) -> list[list[Hit]]:
        scores = self._scores(state, queries, admitted, k, rerank)
        return search.best(state.views, scores, k) or [[] for _ in range(len(queries))]

    def _scores(
        self, state: snapshot.Snapshot, queries: Ragged, admitted: list[Tensor], k: int, rerank: int | None,
        besides: Tensor = NONE,
    ) -> list[Tensor]:  # fmt: skip
        if rerank is None:
            rerank = tune.rerank(state, admitted, k)
        if rerank and state.sketch and state.views:
            return search.two_stage(state.views, state.codec, state.sketch, queries, admitted, max(rerank, k), besides)
        return search.exact(state.views, state.codec, queries, admitted)

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

    def held(self, ids: Sequence[str]) -> list[Document | None]:
        """As :meth:`get` of several, None for those that are not there or cannot be read."""
        state, read = self._state, {}
        places = state.find(ids)
        for v, view in enumerate(state.views):
            docs = torch.tensor(sorted({p[1] for p in places if p is not None and p[0] == v}), dtype=torch.long)
            docs = docs[view.segment.tokens.sound(docs)]
            if len(docs):
                fields, cuts = view.segment.tokens.take(docs)
                parts = state.codec.decode(fields).split(cuts.diff().tolist())
                for doc, vectors in zip(docs.tolist(), parts, strict=True):
                    read[v, doc] = Document(view.segment.id(doc), vectors, view.segment.metadata(doc))
        return [None if p is None else read.get(p) for p in places]

    def metadata(self, ids: Sequence[str]) -> list[dict[str, Any] | None]:
        """The metadata of documents, None for those that are not there; no vector is read."""
        return _metadata(self._state, ids)

    def whole(self, ids: Sequence[str]) -> bool:
        """Whether all these documents are there, with all their vectors."""
        state = self._state
        return all(
            p is not None and bool(state.views[p[0]].segment.whole(torch.tensor([p[1]])).all()) for p in state.find(ids)
        )

    def unknown_fields(self, where: Where) -> list[str]:
        """The fields of conditions that no document has."""
        check(where)
        views = self._state.views
        return [f for f in fields(where) if all(v is None for view in views for v in view.segment.column(f)[0])]

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
    def dated(self) -> bool:
        """Whether parts of it are of an earlier format, and cannot be searched by words until they are written anew."""
        return not all(v.segment.holds(TERMS) for v in self._state.views)

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
            view.segment.worded()
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


def at_least(hits: Sequence[Hit], score: float | None) -> list[Hit]:
    """Hits without those of a lower MaxSim."""
    return [h for h in hits if score is None or h.score >= score]


def _metadata(state: snapshot.Snapshot, ids: Sequence[str]) -> list[dict[str, Any] | None]:
    return [None if p is None else state.views[p[0]].segment.metadata(p[1]) for p in state.find(ids)]
