"""Searching: what is asked of texts by words people type, of one library or of a collection in shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from tokensieve.retrieval.encoders.encoded import Encoder
from tokensieve.retrieval.index import marks
from tokensieve.retrieval.index.filters import Where
from tokensieve.retrieval.index.fusion import Fuse, check_fuse
from tokensieve.retrieval.index.recipe import Recipe
from tokensieve.retrieval.index.results import (
    CANDIDATES,
    Asked,
    SearchResult,
    asked,
    firsts,
    notes,
    question,
    rank_results,
)
from tokensieve.retrieval.index.search import Hit
from tokensieve.retrieval.index.validation import whole
from tokensieve.retrieval.scoring.words import phrases, unquoted

if TYPE_CHECKING:
    from tokensieve.retrieval.encoders.cross import Scorer


LOOKED_AT, VALUES, LONGEST = 500, 12, 60
"""Passages whose fields are told, values of each, and characters of a value."""


@dataclass(frozen=True)
class Answered:
    """What was found for a query, best first, and what of the query is of no effect, in words."""

    results: list[SearchResult]
    notes: tuple[str, ...]


class Searching:
    """The reading calls of what holds texts: a library, or several that are one collection."""

    recipe: Recipe

    @property
    def folder(self) -> Path:
        """Where it stands."""
        raise NotImplementedError

    @property
    def encoder(self) -> Encoder:
        """What texts and queries are encoded by."""
        raise NotImplementedError

    def refresh(self) -> None:
        """See what other processes have committed."""
        raise NotImplementedError

    def hits(
        self, vectors: Sequence[Tensor], k: int, where: Where | None = None, rerank: int | None = None, *,
        words: Sequence[str] | None = None, fuse: Fuse = "none", min_score: float | None = None,
    ) -> list[list[Hit]]:  # fmt: skip
        """The best passages for each of several encoded queries (see :meth:`IndexReader.search`)."""
        raise NotImplementedError

    def stored(self, hits: Sequence[Hit]) -> list[tuple[Hit, Tensor]]:
        """Hits with their metadata and vectors, in their order, without those that were deleted since."""
        raise NotImplementedError

    def unknown_fields(self, where: Where) -> list[str]:
        """The fields of conditions that no passage has."""
        raise NotImplementedError

    def ids(self) -> Iterator[str]:
        """The ids of all passages, in no particular order."""
        raise NotImplementedError

    def metadata(self, ids: Sequence[str]) -> list[dict[str, Any] | None]:
        """What is held of passages besides their vectors, None for those that are not there."""
        raise NotImplementedError

    def get(self, name: str) -> list[dict[str, Any]]:
        """The passages of a text; none where there is no such text."""
        raise NotImplementedError

    @property
    def size(self) -> dict[str, int]:
        """Passages (``documents``), vectors and bytes (see ``Snapshot.size``)."""
        raise NotImplementedError

    @property
    def damaged(self) -> list[str]:
        """What has been found damaged so far, by name; the rest is searched."""
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError

    def search(self, query: str | Sequence[str], k: int = 10, where: Where | None = None,
        keep: int | float | None = None, rerank: int | None = None, *, fuse: Fuse = "none", offset: int = 0,
        min_score: float | None = None, per_document: bool = False, cross: Scorer | None = None,
    ) -> list[Any]:  # fmt: skip
        """The passages of the highest MaxSim, and what each token of the query was matched with; of many queries, a list of such
        lists. What stands in double quotes must stand in a passage.

        Args:
            where: conditions on metadata (see ``filters.Where``).
            keep: show the effect of fewer vectors: the 50 best passages (or ``k``, if more) are ranked again by so many of
                their stored vectors.
            rerank, fuse, offset, min_score: see :meth:`IndexReader.search`.
            per_document: only the best passage of each document.
            cross: a cross-encoder (see ``encoders.cross.load_cross_encoder``) that ranks the 50 best (or as many as are asked
                for, if more) again. Where it fails, they stay as they were, and :meth:`answer` says so.

        Raises:
            ValueError: a query is empty, or a budget or filter is out of range.
        """
        texts = [query] if isinstance(query, str) or not isinstance(query, Sequence) else query
        more: dict[str, Any] = {
            "offset": offset, "min_score": min_score, "per_document": per_document, "cross": cross
        }  # fmt: skip
        out = [answered.results for answered in self.answer(texts, k, where, keep, rerank, fuse=fuse, **more)]
        return out[0] if isinstance(query, str) else out

    def answer(self, queries: Sequence[str], k: int = 10, where: Where | None = None, keep: int | float | None = None,
        rerank: int | None = None, *, fuse: Fuse = "none", offset: int = 0, min_score: float | None = None,
        per_document: bool = False, cross: Scorer | None = None,
    ) -> list[Answered]:  # fmt: skip
        """As :meth:`search`, for several queries, with what of each is of no effect."""
        self.refresh()
        whole("offset", offset, 0)
        check_fuse(fuse)
        texts = [question(q) for q in queries]
        if keep is not None and (fuse != "none" or offset or per_document or cross):
            raise ValueError(
                f"keep={keep!r} ranks the best by MaxSim again; leave out fuse, offset, per_document and the cross-encoder"
            )
        encoded = self.encoder.queries([unquoted(q) for q in texts])
        tokens = [asked(encoded.rows([i]), self.notes(text, where)) for i, text in enumerate(texts)]
        most = k + offset if keep is None and cross is None else max(k + offset, CANDIDATES)

        def ranked(some: Sequence[int], most: int) -> list[list[Hit]]:
            words = [texts[i] for i in some] if fuse != "none" or any(phrases(texts[i]) for i in some) else None
            vectors = [tokens[i].vectors for i in some]
            return self.hits(vectors, most, where, rerank, words=words, fuse=fuse, min_score=min_score)

        if per_document:
            found = [firsts(lambda most, i=i: ranked([i], most)[0], most) for i in range(len(texts))]  # type: ignore[misc]
        else:
            found = ranked(range(len(texts)), most) if texts else []
        if cross is not None:
            return [
                self._crossed(text, own, hits, cross, slice(offset, offset + k))
                for text, own, hits in zip(texts, tokens, found, strict=True)
            ]
        return [
            Answered(rank_results(own, self.stored(hits[offset:]), k, keep, self.recipe), own.notes)
            for own, hits in zip(tokens, found, strict=True)
        ]

    def _crossed(self, text: str, own: Asked, hits: Sequence[Hit], cross: Scorer, page: slice) -> Answered:
        """Hits ranked again by a cross-encoder; as they were where it fails."""
        results = rank_results(own, self.stored(hits), len(hits), None, self.recipe)
        try:
            said = [f"{r.context}\n{r.text}" if r.context else r.text for r in results]
            scores = cross.scores(unquoted(text), said) if said else []
            results = [replace(r, cross=float(s)) for r, s in zip(results, scores, strict=True)]
        except Exception as problem:  # of whatever model it is; what was found without it is worth showing
            note = f"the cross-encoder failed, and ranked nothing ({type(problem).__name__}: {problem})"[:300]
            return Answered([replace(r, notes=(*r.notes, note)) for r in results[page]], (*own.notes, note))
        return Answered(sorted(results, key=lambda r: (-(r.cross or 0.0), r.id))[page], own.notes)

    def fields(self) -> dict[str, list[Any]]:
        """The fields that passages have (``a.b`` for one inside another), and of each some values, the most frequent first; told
        from some hundred passages."""
        ids = sorted(self.ids())
        held = self.metadata(ids[:: max(len(ids) // LOOKED_AT, 1)])
        seen: dict[str, Counter[Any]] = {}
        for name, value in (pair for m in held if m for pair in _flat(marks.free(m))):
            values = seen.setdefault(name, Counter())
            if isinstance(value, (str, int, float)) and len(str(value)) <= LONGEST:
                values[value] += 1
        return {name: [value for value, _ in values.most_common(VALUES)] for name, values in sorted(seen.items())}

    def notes(self, query: str, where: Where | None = None) -> tuple[str, ...]:
        """What of a query is of no effect, in words: an end that the encoder cuts off, words that it does not know, fields that
        no document has."""
        return notes(self.encoder, unquoted(query)) + tuple(
            f"no document has the field {field!r}" for field in self.unknown_fields(where or {})
        )


def _flat(metadata: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in metadata.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield before + name, value
