"""Fusion: one ranking of documents by what they mean (MaxSim) and by their words (BM25)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tokensieve.retrieval.index.search import Hit
from tokensieve.retrieval.index.snapshot import Snapshot
from tokensieve.retrieval.scoring.ragged import bounds

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


class Candidate(NamedTuple):
    """A document that may be among the best of a collection: its MaxSim (minus infinity where it is not known), its BM25, and
    whether MaxSim found it."""

    id: str
    sense: float
    words: float
    sensed: bool


def depth(k: int) -> int:
    """Candidates of each ranking, where k documents are asked for."""
    return max(POOL, 2 * k)


def candidates(state: Snapshot, like: np.ndarray, words: np.ndarray, said: np.ndarray, most: int) -> list[Candidate]:
    """What may be among the best of a collection for one query: the first of each ranking.

    Args:
        like: MaxSim, ``(D,)`` of the documents of all views; minus infinity where it is not known.
        words: BM25, ``(D,)``.
        said: the places of the first by words.
        most: of those by MaxSim.
    """
    by_sense = first(state, like, -np.inf, most)
    pool = np.union1d(by_sense, said)
    about = like[pool], words[pool], np.isin(pool, by_sense)
    return list(map(Candidate, _ids(state, pool), *(each.tolist() for each in about)))


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


def first(state: Snapshot, scores: np.ndarray, above: float, most: int) -> np.ndarray:
    """The places, among the documents of all views, of those that score best; of equal scores those of the lower ids.

    Args:
        scores: ``(D,)``.
        above: what a score must be above.
    """
    places = np.flatnonzero(scores > above)
    if len(places) <= most:
        return places
    some = scores[places]
    least = _at(some, most)
    better, equal = places[some > least], places[some == least]
    if len(better) + len(equal) > most:
        named = sorted(zip(_ids(state, equal), equal.tolist(), strict=True))
        equal = np.array([place for _, place in named[: most - len(better)]])
    return np.concatenate([better, equal])


def leading(scores: np.ndarray, places: np.ndarray, k: int) -> np.ndarray:
    """Of some places the k that score best, and those that score as the last of them."""
    some = scores[places]
    return places[some >= _at(some, k)] if len(places) > k else places


def _at(scores: np.ndarray, rank: int) -> float:
    """The score at a rank, counted from the best."""
    return np.partition(scores, len(scores) - rank)[len(scores) - rank]


def _even(scores: Sequence[float]) -> Tensor:
    """Scores from 0 to 1."""
    x = torch.tensor(scores, dtype=torch.double)
    known = x[x > -torch.inf]
    x = x.clamp(min=float(known.min()) if len(known) else 0.0)
    return (x - x.min()) / (x.max() - x.min()).clamp(min=1e-12)


def _ids(state: Snapshot, places: np.ndarray) -> list[str]:
    """The ids of the documents at some places, ascending."""
    starts = bounds([view.segment.docs for view in state.views]).tolist()
    cuts = np.searchsorted(places, starts).tolist()
    parts = zip(state.views, starts, pairwise(cuts), strict=False)
    return [id for view, start, (a, b) in parts if a < b for id in view.segment.ids(places[a:b] - start)]
