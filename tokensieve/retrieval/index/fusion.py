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
    starts = bounds([len(s) for s in scores])
    like, words = torch.cat(list(scores)), torch.cat(bm25(state.views, text, admitted, counts))
    by_sense = _first(state, starts, like, like > -torch.inf, most)
    pool = torch.cat([by_sense, _first(state, starts, words, words > 0, most)]).unique()
    sensed = torch.isin(pool, by_sense)
    like = _known(state, query, like, starts, pool)
    about = zip(like[pool].tolist(), words[pool].tolist(), sensed.tolist(), strict=True)
    return [Candidate(name, *one) for name, one in zip(_ids(state, starts, pool), about, strict=True)]


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


def _first(state: Snapshot, starts: Tensor, scores: Tensor, open_: Tensor, depth: int) -> Tensor:
    """The places of the best documents, of equal scores those of the lower ids."""
    some = scores.masked_fill(~open_, -torch.inf)
    count = min(depth, int(open_.sum()))
    if not count:
        return torch.empty(0, dtype=torch.long)
    least = some.topk(count).values[-1]
    above, equal = (some > least).nonzero()[:, 0], ((some == least) & open_).nonzero()[:, 0]
    if len(equal) > count - len(above):
        named = sorted(zip(_ids(state, starts, equal), equal.tolist(), strict=True))
        equal = torch.tensor([place for _, place in named[: count - len(above)]])
    return torch.cat([above, equal])


def _known(state: Snapshot, query: Ragged, like: Tensor, starts: Tensor, pool: Tensor) -> Tensor:
    """MaxSim of all candidates: those that only words have found are scored now."""
    missing = pool[like[pool] == -torch.inf]
    if not len(missing):
        return like
    like, prepared = like.clone(), state.codec.prepare(query.tokens)
    for view, first, last in zip(state.views, starts.tolist(), starts.tolist()[1:], strict=False):
        docs = missing[(missing >= first) & (missing < last)]
        if len(docs):
            tokens = view.segment.tokens
            like[docs] = search.score(tokens, state.codec, prepared, query, docs - first, -torch.inf)[:, 0]
    return like


def _even(scores: Sequence[float]) -> Tensor:
    """Scores from 0 to 1."""
    x = torch.tensor(scores, dtype=torch.double)
    known = x[x > -torch.inf]
    x = x.clamp(min=float(known.min()) if len(known) else 0.0)
    return (x - x.min()) / (x.max() - x.min()).clamp(min=1e-12)


def _ids(state: Snapshot, starts: Tensor, places: Tensor) -> list[str]:
    views = (torch.searchsorted(starts, places, right=True) - 1).tolist()
    docs = places.tolist()
    ends = starts.tolist()
    return [state.views[v].segment.id(place - ends[v]) for v, place in zip(views, docs, strict=True)]
