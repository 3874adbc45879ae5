"""Search: scores of the documents of a snapshot, and the best of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokensieve.codec import Codec
from tokensieve.retrieval.maxsim import best_matches, sums
from tokensieve.retrieval.ragged import Ragged, bounds
from tokensieve.retrieval.segment import Segment
from tokensieve.retrieval.snapshot import View


@dataclass(frozen=True)
class Hit:
    """A document found: its id, its MaxSim score, and its metadata."""

    id: str
    score: float
    metadata: dict[str, Any]


def exact(views: Sequence[View], codec: Codec, queries: Ragged, admitted: Sequence[Tensor]) -> list[Tensor]:
    """MaxSim of all admitted documents, ``(D, B)`` for each view; minus infinity for the others and for damaged ones."""
    prepared = codec.prepare(queries.tokens)
    out = []
    for view, mask in zip(views, admitted, strict=True):
        docs = mask.nonzero()[:, 0]
        scores = torch.full((view.segment.docs, len(queries)), -torch.inf)
        scores[docs] = score(view.segment, codec, prepared, queries, docs)
        out.append(scores)
    return out


def score(segment: Segment, codec: Codec, prepared: Any, queries: Ragged, docs: Tensor) -> Tensor:
    """MaxSim of some documents of a segment, ascending, ``(D, B)``; minus infinity where they are damaged."""
    out = torch.full((len(docs), len(queries)), -torch.inf)
    sound = segment.sound(docs)
    place, docs = sound.nonzero()[:, 0], docs[sound]

    def table(first: int, last: int, start: int, stop: int, _: Tensor) -> Tensor:
        fields, _ = segment.rows(docs[first:last])
        return codec.score({k: v[start:stop] for k, v in fields.items()}, prepared)

    like = torch.empty(0, len(queries.tokens))
    for first, last, best in best_matches(table, bounds(segment.offsets.diff()[docs]), like):
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
