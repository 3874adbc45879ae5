"""Evaluate: how well a ranking finds the one passage that answers each query, and two rankings to compare with."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from tokensieve.retrieval.encoders.encoded import Encoded
from tokensieve.retrieval.scoring.maxsim import maxsim, runs, segment_max, sums

K = TypeVar("K")
TOGETHER = 64
"""Queries scored at once."""
HELD = 2**22
"""Similarities held at once (16 MB)."""


def late_interaction(queries: Encoded, documents: Encoded) -> np.ndarray:
    """``(Q, D)``: MaxSim of every query with every document."""
    parts = torch.arange(len(queries)).split(TOGETHER)
    return np.concatenate([maxsim(queries.rows(part).ragged, documents.ragged).numpy() for part in parts])


def several(
    queries: Encoded, documents: Encoded, reductions: Mapping[K, tuple[csr_array, Tensor]]
) -> dict[K, np.ndarray]:
    """For each of several reductions (``reduce.as_matrix``), ``(Q, D)``: MaxSim with the reduced documents.

    Similarities with all vectors are computed once; those with reduced ones follow, since reductions are linear.
    """
    cuts, right = documents.offsets.tolist(), queries.vectors.T.contiguous()
    out = {name: np.empty((len(queries), len(documents)), dtype=np.float32) for name in reductions}
    for first, last in runs(cuts, max(HELD // right.shape[1], 1)):
        like = (documents.vectors[cuts[first] : cuts[last]] @ right).numpy()
        for name, (matrix, offsets) in reductions.items():
            own = offsets[first : last + 1]
            part = matrix[int(own[0]) : int(own[-1]), cuts[first] : cuts[last]] @ like
            best = segment_max(torch.from_numpy(part), own - own[0])
            out[name][:, first:last] = sums(best, queries.offsets).T.numpy()
    return out


def single_vector(queries: Encoded, documents: Encoded) -> np.ndarray:
    """``(Q, D)``: cosines of the texts' single vectors.

    Raises:
        ValueError: the encoder makes none.
    """
    if queries.single is None or documents.single is None:
        raise ValueError("this encoder makes no single vectors")
    return (queries.single @ documents.single.T).numpy()


def bm25(queries: Sequence[str], documents: Sequence[str], k1: float = 1.2, b: float = 0.75) -> np.ndarray:
    """``(Q, D)``: Okapi BM25 over lower-cased words; the idf of Lucene, which is never negative."""
    counted = [Counter(_words(text)) for text in documents]
    column = {word: i for i, word in enumerate(sorted(set().union(*counted)))}
    total = np.array([sum(c.values()) for c in counted], dtype=np.float64)
    norm = k1 * (1 - b + b * total / max(total.mean(), 1))
    row, place, value = [], [], []
    for i, count in enumerate(counted):
        for word, n in count.items():
            row.append(i)
            place.append(column[word])
            value.append(n * (k1 + 1) / (n + norm[i]))
    weights = csr_array((value, (row, place)), shape=(len(documents), len(column)))
    holding = np.bincount(np.array(place, dtype=np.int64), minlength=len(column))
    idf = np.log(1 + (len(documents) - holding + 0.5) / (holding + 0.5))
    out = np.zeros((len(queries), len(documents)))
    by_word = weights.tocsc()
    for i, text in enumerate(queries):
        known = [column[w] for w in _words(text) if w in column]
        out[i] = by_word[:, known] @ idf[known]
    return out


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def ranks(scores: np.ndarray, relevant: Sequence[int] | Tensor) -> np.ndarray:
    """``(Q,)``: the place of each query's passage, from 1; of equal scores the earlier passage stands first."""
    place = np.asarray(relevant)
    own = scores[np.arange(len(place)), place][:, None]
    earlier = np.arange(scores.shape[1]) < place[:, None]
    return 1 + ((scores > own) | ((scores == own) & earlier)).sum(1)


def measures(rank: np.ndarray) -> dict[str, np.ndarray]:
    """Per query: nDCG@10, reciprocal rank and recall@100, where one passage answers."""
    return {
        "nDCG@10": np.where(rank <= 10, 1 / np.log2(rank + 1), 0.0),
        "MRR": 1 / rank,
        "recall@100": (rank <= 100).astype(np.float64),
    }


def spread(better: np.ndarray, worse: np.ndarray, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """The 95% interval of the difference of two means over the same queries, by resampling the queries."""
    gap = better - worse
    pick = np.random.default_rng(seed).integers(0, len(gap), (draws, len(gap)))
    low, high = np.percentile(gap[pick].mean(1), [2.5, 97.5])
    return float(low), float(high)
