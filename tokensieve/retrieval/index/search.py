"""Search: scores of the documents of a snapshot, and the best of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokensieve.retrieval.index.rows import Rows
from tokensieve.retrieval.index.snapshot import View, sketch_codec
from tokensieve.retrieval.scoring.maxsim import best_matches, sums
from tokensieve.retrieval.scoring.ragged import Ragged, bounds
from tokensieve.retrieval.scoring.sketch import Sketch
from tokensieve.retrieval.storage import VectorFormat

SCORED = 4096
"""Vectors scored at once, so that what their codec makes of them stays in the cache."""


@dataclass(frozen=True)
class Hit:
    """A document found: its id, its MaxSim score, its metadata, and what it was ranked by where that is not the score."""

    id: str
    score: float
    metadata: dict[str, Any]
    fused: float | None = None


def exact(views: Sequence[View], codec: VectorFormat, queries: Ragged, admitted: Sequence[Tensor]) -> list[Tensor]:
    """MaxSim of all admitted documents, ``(D, B)`` for each view; minus infinity for the others and for damaged ones."""
    return _scores([v.segment.tokens for v in views], codec, queries, admitted, -torch.inf)


def two_stage(
    views: Sequence[View], codec: VectorFormat, sketch: Sketch, queries: Ragged, admitted: Sequence[Tensor], rerank: int,
    besides: Tensor,
) -> list[Tensor]:  # fmt: skip
    """MaxSim of the ``rerank`` documents of each query whose sketches score best, and of those ``besides`` (their places among
    the documents of all views) and those whose sketches are damaged; minus infinity for all others.
    """
    looked = rough(views, sketch, queries, admitted)
    every, starts = torch.cat(looked), bounds([len(r) for r in looked]).tolist()
    out = [torch.full_like(r, -torch.inf) for r in looked]
    most = min(rerank, len(every))
    for b in range(len(queries)):
        column = every[:, b]
        top = column.topk(min(most + int(column.isposinf().sum()), len(every))).indices
        query = Ragged(queries[b], queries.offsets[b : b + 2] - queries.offsets[b])
        prepared = codec.prepare(query.tokens)
        chosen = torch.zeros(len(every), dtype=torch.bool)
        chosen[top] = chosen[besides] = True
        top = (chosen & (column > -torch.inf)).nonzero()[:, 0]
        for v, view in enumerate(views):
            docs = top[(top >= starts[v]) & (top < starts[v + 1])] - starts[v]
            out[v][docs, b] = score(view.segment.tokens, codec, prepared, query, docs, -torch.inf)[:, 0]
    return out


def rough(views: Sequence[View], sketch: Sketch, queries: Ragged, admitted: Sequence[Tensor]) -> list[Tensor]:
    """MaxSim of the sketches of all admitted documents, ``(D, B)`` for each view; infinity for damaged ones."""
    rows = [v.segment.rows["sketch"] for v in views]
    return _scores(rows, sketch_codec(sketch), sketch.queries(queries), admitted, torch.inf)


def _scores(
    rows: Sequence[Rows], codec: VectorFormat, queries: Ragged, admitted: Sequence[Tensor], damaged: float
) -> list[Tensor]:
    prepared = codec.prepare(queries.tokens)
    out = []
    for part, mask in zip(rows, admitted, strict=True):
        docs = mask.nonzero()[:, 0]
        scores = torch.full((len(mask), len(queries)), -torch.inf)
        scores[docs] = score(part, codec, prepared, queries, docs, damaged)
        out.append(scores)
    return out


def score(rows: Rows, codec: VectorFormat, prepared: Any, queries: Ragged, docs: Tensor, damaged: float) -> Tensor:
    """MaxSim of some documents, ascending, ``(D, B)``; ``damaged`` where they are."""
    out = torch.full((len(docs), len(queries)), damaged)
    sound = rows.sound(docs)
    place, docs = sound.nonzero()[:, 0], docs[sound]

    def table(first: int, last: int, start: int, stop: int, out: Tensor) -> Tensor:
        fields, _ = rows.take(docs[first:last])
        for a in range(start, stop, SCORED):
            b = min(a + SCORED, stop)
            out[a - start : b - start] = codec.score({k: v[a:b] for k, v in fields.items()}, prepared)
        return out

    like = torch.empty(0, len(queries.tokens))
    offsets = bounds(rows.offsets[docs + 1] - rows.offsets[docs])
    for first, last, best in best_matches(table, offsets, like):
        out[place[first:last]] = sums(best, queries.offsets)
    return out


def best(views: Sequence[View], scores: Sequence[Tensor], k: int) -> list[list[Hit]]:
    """The k best documents for each query, from ``(D, B)`` scores of each view; equal scores in the order of ids."""
    queries = scores[0].shape[1] if scores else 0
    every = torch.cat(list(scores)) if scores else torch.empty(0, 0)
    starts = bounds([len(s) for s in scores])
    out = []
    for column in every.T[:queries]:
        least = column.topk(min(k, len(column))).values[-1]
        found = []
        for place in ((column >= least) & (column > -torch.inf)).nonzero()[:, 0].tolist():
            v = int(torch.searchsorted(starts, place, right=True)) - 1
            segment, doc = views[v].segment, place - int(starts[v])
            found.append((-float(column[place]), segment.id(doc), segment, doc))
        found.sort(key=lambda f: f[:2])
        out.append([Hit(name, -low, segment.metadata(doc)) for low, name, segment, doc in found[:k]])
    return out
