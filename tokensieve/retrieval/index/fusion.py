"""Fusion: one ranking of documents by what they mean (MaxSim) and by their words (BM25)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tokensieve.retrieval.index import search
from tokensieve.retrieval.index.lexical import WordCounts, bm25
from tokensieve.retrieval.index.search import Hit
from tokensieve.retrieval.index.snapshot import Snapshot
from tokensieve.retrieval.scoring.ragged import Ragged, bounds

Fuse = Literal["none", "rrf"] | float
"""How words count: not at all, by the ranks of both (reciprocal rank fusion), or by a share of the score, from 0 to 1."""
POOL = 100
"""Candidates of each ranking, at least."""
RANK = 60
"""What reciprocal rank fusion adds to a rank (Cormack, Clarke and Buettcher 2009)."""


def check_fuse(fuse: Fuse) -> None:
    """Refuse what is no way of fusing."""
    share = isinstance(fuse, (int, float)) and not isinstance(fuse, bool) and 0 <= fuse <= 1
    if not share and fuse not in ("none", "rrf"):
        raise ValueError(f"fuse={fuse!r}; it is 'none', 'rrf' or a share of the score for words, from 0 to 1")


@dataclass(frozen=True)
class Candidate:
    """A document that may be among the best of a collection: its MaxSim, its BM25, and whether MaxSim found it."""

    id: str
    sense: float
    words: float
    sensed: bool


def depth(k: int) -> int:
    """Candidates of each ranking, where k documents are asked for."""
    return max(POOL, 2 * k)


def candidates(
    state: Snapshot, query: Ragged, text: str, scores: Sequence[Tensor], admitted: Sequence[Tensor], most: int,
    counts: WordCounts | None = None,
) -> list[Candidate]:  # fmt: skip
    """What may be among the best of a collection for one query: the first of each ranking.

    Args:
        scores: MaxSim, ``(D,)`` for each view; minus infinity where it is not known.
        text: the query's words.
        most: of each ranking.
        counts: words of the whole collection, where this is a part of it.
    """
    if not scores:
        return []
    starts = bounds([len(s) for s in scores]).tolist()
    like, words = torch.cat(list(scores)), torch.cat(bm25(state.views, text, admitted, counts))
    by_sense = set(_first(state, starts, like, like > -torch.inf, most))
    pool = sorted({*by_sense, *_first(state, starts, words, words > 0, most)})
    like = _known(state, query, like, starts, pool)
    out = []
    for place in pool:
        name = _id(state, starts, place)
        out.append(Candidate(name, float(like[place]), float(words[place]), place in by_sense))
    return out


def fused(found: Sequence[Candidate], k: int, fuse: Fuse) -> list[Hit]:
    """The k best of all candidates of a collection, without their metadata."""
    by_sense = sorted((c for c in found if c.sensed), key=lambda c: (-c.sense, c.id))[: depth(k)]
    by_words = sorted((c for c in found if c.words > 0), key=lambda c: (-c.words, c.id))[: depth(k)]
    pool = list({c.id: c for c in (*by_sense, *by_words)}.values())
    if not pool:
        return []
    if fuse == "rrf":
        value = dict.fromkeys((c.id for c in pool), 0.0)
        for ranking in (by_sense, by_words):
            for rank, one in enumerate(ranking, 1):
                value[one.id] += 1 / (RANK + rank)
    else:
        share = float(fuse)
        even = (1 - share) * _even([c.sense for c in pool]) + share * _even([c.words for c in pool])
        value = dict(zip((c.id for c in pool), even.tolist(), strict=True))
    # What can no longer be read has no score.
    held = sorted((c for c in pool if c.sense > -torch.inf), key=lambda c: (-value[c.id], c.id))
    return [Hit(c.id, c.sense, {}, value[c.id]) for c in held[:k]]


def _first(state: Snapshot, starts: list[int], scores: Tensor, open_: Tensor, depth: int) -> list[int]:
    """The places of the best documents, equal scores in the order of ids."""
    some = scores.masked_fill(~open_, -torch.inf)
    count = min(depth, int(open_.sum()))
    if not count:
        return []
    least = some.topk(count).values[-1]
    places = ((some >= least) & open_).nonzero()[:, 0].tolist()
    return sorted(places, key=lambda p: (-float(scores[p]), _id(state, starts, p)))[:count]


def _known(state: Snapshot, query: Ragged, like: Tensor, starts: list[int], pool: list[int]) -> Tensor:
    """MaxSim of all candidates: those that only words have found are scored now."""
    like = like.clone()
    missing = torch.tensor([p for p in pool if like[p] == -torch.inf], dtype=torch.long)
    prepared = state.codec.prepare(query.tokens)
    for v, view in enumerate(state.views):
        docs = missing[(missing >= starts[v]) & (missing < starts[v + 1])] - starts[v]
        if len(docs):
            like[docs + starts[v]] = search.score(view.segment.tokens, state.codec, prepared, query, docs, -torch.inf)[
                :, 0
            ]
    return like


def _even(scores: Sequence[float]) -> Tensor:
    """Scores from 0 to 1."""
    x = torch.tensor(scores, dtype=torch.double)
    known = x[x > -torch.inf]
    x = x.clamp(min=float(known.min()) if len(known) else 0.0)
    return (x - x.min()) / (x.max() - x.min()).clamp(min=1e-12)


def _at(starts: list[int], place: int) -> tuple[int, int]:
    v = next(i for i in range(len(starts) - 1) if starts[i] <= place < starts[i + 1])
    return v, place - starts[v]


def _id(state: Snapshot, starts: list[int], place: int) -> str:
    v, doc = _at(starts, place)
    return state.views[v].segment.id(doc)
