"""Lexical: the words of a segment's documents, and their BM25.

Five tensors in the segment's own file, which is memory-mapped: they are written, checked, repaired and deleted with it. What is
counted over a collection (how many documents hold a word, their mean length) is counted at a search, over living documents:
scores are those of an index made anew. The choices outside were bm25s, which can neither add nor delete and fixes its scores
when it is built, and tantivy, with files, locks and commits of its own, which a kill between two commits would part from ours.

Okapi BM25 (Robertson and Zaragoza 2009) with Lucene's idf, which is never negative; k1 = 1.2, b = 0.75.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from tokensieve.retrieval.index.marks import CONTEXT
from tokensieve.retrieval.index.segment import Segment
from tokensieve.retrieval.index.snapshot import View
from tokensieve.retrieval.scoring.words import folded, terms

K1, B = 1.2, 0.75
TERMS, ENDS, DOCS, COUNTS = NAMES = ("word", "word_ends", "word_docs", "word_counts")
"""Hashes of words, ascending; where the entries of each end; their documents; how often each holds the word."""
LENGTHS = "word_lengths"
"""How many terms each document has."""


def lexical(metadata: Sequence[bytes]) -> dict[str, Tensor]:
    """The words of documents, whose text and what stands above it are in their metadata."""
    docs, words, counts, lengths = [], [], [], []
    known: dict[str, int] = {}
    for i, held in enumerate(metadata):
        said = Counter(terms(_text(json.loads(held))))
        lengths.append(sum(said.values()))
        for term, n in said.items():
            docs.append(i)
            words.append(known.setdefault(term, len(known)))
            counts.append(n)
    keys = np.array([_key(term) for term in known], np.int64)
    return _laid(
        keys[np.array(words, np.int64)] if words else keys, np.array(docs), np.array(counts), np.array(lengths)
    )


def joined(parts: Sequence[tuple[Segment, Tensor]], order: Tensor) -> dict[str, Tensor] | None:
    """The words of some documents of segments, in ``order`` behind each other; None where those of a segment
    are not there or cannot be read."""
    if len(parts) == 1:
        return _left(*parts[0])
    keys, docs, counts, lengths, start = [], [], [], [], 0
    for segment, kept in parts:
        if not segment.worded():
            return None
        hashes, ends, of, n = (segment.array(name) for name in NAMES)
        new = np.full(segment.docs, -1, np.int64)
        new[kept.numpy()] = start + np.arange(len(kept))
        place = new[of]
        stays = place >= 0
        keys.append(np.repeat(hashes, np.diff(ends, prepend=0))[stays])
        docs.append(place[stays])
        counts.append(n[stays])
        lengths.append(segment.array(LENGTHS)[kept.numpy()])
        start += len(kept)
    rank = np.empty(start, np.int64)
    rank[order.numpy()] = np.arange(start)
    every = np.concatenate(lengths)[order.numpy()]
    return _laid(np.concatenate(keys), rank[np.concatenate(docs)], np.concatenate(counts), every)


def _left(segment: Segment, kept: Tensor) -> dict[str, Tensor] | None:
    """The words of some documents of a segment, ascending; words and documents stay in their order."""
    if not segment.worded():
        return None
    hashes, ends, docs, counts = (segment.array(name) for name in NAMES)
    new = np.full(segment.docs, -1, np.int32)
    new[kept.numpy()] = np.arange(len(kept), dtype=np.int32)
    place = new[docs]
    stays = place >= 0
    after = np.concatenate([[0], np.cumsum(stays)])[ends]
    held = np.diff(after, prepend=0) > 0
    return _tensors(hashes[held], after[held], place[stays], counts[stays], segment.array(LENGTHS)[kept.numpy()])


_Postings = dict[int, tuple[np.ndarray, np.ndarray]] | None
"""By the hash of a word: the documents of a segment that hold it, ascending, and how often each does; None of one whose words
cannot be read."""


@dataclass(frozen=True)
class WordCounts:
    """What BM25 counts over a collection: its documents, all their terms, and how many documents hold each of some words (by
    their hashes)."""

    documents: int = 0
    terms: int = 0
    holding: Mapping[int, int] = field(default_factory=dict)

    def __add__(self, other: WordCounts) -> WordCounts:
        both = Counter(self.holding) + Counter(other.holding)
        return WordCounts(self.documents + other.documents, self.terms + other.terms, both)


def word_counts(views: Sequence[View], query: str) -> WordCounts:
    """Counts of a query's words over living documents."""
    return _counted(views, [_postings(view, query) for view in views])


def _counted(views: Sequence[View], found: Sequence[_Postings]) -> WordCounts:
    documents, total, holding = 0, 0, Counter[int]()
    for view, postings in zip(views, found, strict=True):
        if postings is None:
            continue
        lengths, alive = view.segment.array(LENGTHS), view.alive.numpy()
        whole = bool(alive.all())
        documents += int(np.count_nonzero(alive))
        total += int((lengths if whole else lengths[alive]).sum(dtype=np.int64))
        for key, (docs, _) in postings.items():
            holding[key] += len(docs) if whole else int(np.count_nonzero(alive[docs]))
    return WordCounts(documents, total, holding)


def bm25(
    views: Sequence[View], query: str, admitted: Sequence[Tensor], counts: WordCounts | None = None
) -> list[Tensor]:
    """BM25 of all admitted documents, ``(D,)`` for each view; 0 for those that hold no word of the query.

    Args:
        counts: those of the collection that the views are a part of; by default they are all of it.
    """
    found = [_postings(view, query) for view in views]
    counts = counts or _counted(views, found)
    mean = max(counts.terms / max(counts.documents, 1), 1.0)
    out = []
    for view, mask, postings in zip(views, admitted, found, strict=True):
        score = np.zeros(len(mask))
        if postings:
            long = K1 * (1 - B) + view.segment.array(LENGTHS) * (K1 * B / mean)
            for key, (docs, n) in postings.items():
                held = counts.holding.get(key, 0)
                idf = math.log(1 + (counts.documents - held + 0.5) / (held + 0.5))
                score[docs] += n / (long[docs] + n) * (idf * (K1 + 1))
            score[~mask.numpy()] = 0.0
        out.append(torch.from_numpy(score))
    return out


def _postings(view: View, query: str) -> _Postings:
    if not view.segment.worded():
        return None
    found = {key: _entries(view.segment, key) for key in _wanted(query)}
    return {key: entries for key, entries in found.items() if len(entries[0])}


@lru_cache(maxsize=64)
def _wanted(query: str) -> list[int]:
    """Hashes of a query's words; asked for once for each segment."""
    return sorted({_key(term) for term in terms(query, query=True)})


def holding(view: View, phrases: Sequence[str]) -> Tensor:
    """``(D,)`` bool: living documents in which all phrases stand."""
    out = view.alive.clone()
    if view.segment.worded():
        for key in {_key(term) for phrase in phrases for term in _inner(phrase)}:
            some = torch.zeros(len(out), dtype=torch.bool)
            some[torch.from_numpy(_entries(view.segment, key)[0].astype(np.int64))] = True
            out &= some
    for doc in out.nonzero()[:, 0].tolist():
        text = folded(_text(view.segment.metadata(doc)))
        out[doc] = all(phrase in text for phrase in phrases)
    return out


def _inner(phrase: str) -> list[str]:
    """Terms that a text surely has in which a phrase stands: the words that it does not begin or end in the middle of."""
    words = phrase.split(" ")[1:-1]
    return [term for word in words for term in [word] if list(terms(word)) == [word]]


def _entries(segment: Segment, key: int) -> tuple[np.ndarray, np.ndarray]:
    hashes, ends, docs, counts = (segment.array(name) for name in NAMES)
    i = int(np.searchsorted(hashes, key))
    if i == len(hashes) or hashes[i] != key:
        return docs[:0], counts[:0]
    some = slice(int(ends[i - 1]) if i else 0, int(ends[i]))
    return docs[some], counts[some]


def _text(metadata: Mapping[str, object]) -> str:
    said = [metadata.get(name) for name in (CONTEXT, "text")]
    return "\n".join(part for part in said if isinstance(part, str))


def _key(term: str) -> int:
    return int.from_bytes(blake2b(term.encode(errors="surrogatepass"), digest_size=8).digest(), "little", signed=True)


def _laid(keys: np.ndarray, docs: np.ndarray, counts: np.ndarray, lengths: np.ndarray) -> dict[str, Tensor]:
    order = np.lexsort((docs, keys)) if len(keys) else np.zeros(0, np.int64)
    hashes, first = np.unique(keys[order], return_index=True)
    ends = np.append(first[1:], len(order)).astype(np.int64) if len(hashes) else np.zeros(0, np.int64)
    return _tensors(hashes, ends, docs[order], counts[order], lengths)


def _tensors(
    hashes: np.ndarray, ends: np.ndarray, docs: np.ndarray, counts: np.ndarray, lengths: np.ndarray
) -> dict[str, Tensor]:
    held = {
        TERMS: hashes.astype(np.int64), ENDS: _small(ends), DOCS: _small(docs), COUNTS: _small(counts), LENGTHS: _small(lengths),
    }  # fmt: skip
    return {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in held.items()}


def _small(x: np.ndarray) -> np.ndarray:
    """Counts in the smallest type that holds them all."""
    most = int(x.max(initial=0))
    return x.astype(next(kind for kind in (np.int8, np.int16, np.int32, np.int64) if most <= np.iinfo(kind).max))
