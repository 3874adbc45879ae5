"""Fusion: one ranking of documents by what they mean (MaxSim) and by their words (BM25)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from tokensieve.retrieval.index import search
from tokensieve.retrieval.index.lexical import bm25
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


def fused(
    state: Snapshot, query: Ragged, text: str, scores: Sequence[Tensor], admitted: Sequence[Tensor], k: int, fuse: Fuse
) -> list[Hit]:
    """The k best documents for one query.

    Args:
        scores: MaxSim, ``(D,)`` for each view; minus infinity where it is not known.
        text: the query's words.
    """
    starts = bounds([len(s) for s in scores]).tolist()
    like = torch.cat(list(scores)) if scores else torch.empty(0)
    words = torch.cat(bm25(state.views, text, admitted)) if scores else torch.empty(0)
    depth = max(POOL, 2 * k)
    by_sense = _first(state, starts, like, like > -torch.inf, depth)
    by_words = _first(state, starts, words, words > 0, depth)
    pool = sorted({*by_sense, *by_words})
    if not pool:
        return []
    like = _known(state, query, like, starts, pool)
    if fuse == "rrf":
        value = dict.fromkeys(pool, 0.0)
        for ranking in (by_sense, by_words):
            for rank, place in enumerate(ranking, 1):
                value[place] += 1 / (RANK + rank)
    else:
        share = float(fuse)
        sense, said = _even(like[pool]), _even(words[pool])
        value = dict(zip(pool, ((1 - share) * sense + share * said).tolist(), strict=True))
    # What can no longer be read has no score.
    held = [(-value[p], _id(state, starts, p), p) for p in pool if like[p] > -torch.inf]
    out = []
    for low, name, place in sorted(held)[:k]:
        v, doc = _at(starts, place)
        out.append(Hit(name, float(like[place]), state.views[v].segment.metadata(doc), -low))
    return out


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


def _even(x: Tensor) -> Tensor:
    """Scores from 0 to 1."""
    low = x[x > -torch.inf].min() if bool((x > -torch.inf).any()) else torch.tensor(0.0)
    x = x.clamp(min=float(low)).double()
    return (x - x.min()) / (x.max() - x.min()).clamp(min=1e-12)


def _at(starts: list[int], place: int) -> tuple[int, int]:
    v = next(i for i in range(len(starts) - 1) if starts[i] <= place < starts[i + 1])
    return v, place - starts[v]


def _id(state: Snapshot, starts: list[int], place: int) -> str:
    v, doc = _at(starts, place)
    return state.views[v].segment.id(doc)
