"""Measure: how well and how fast an index answers queries, against scoring everything."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tokensieve.retrieval.encoders.encoded import join
from tokensieve.retrieval.evaluation import evaluate
from tokensieve.retrieval.index.library import Library
from tokensieve.retrieval.index.put import TOGETHER
from tokensieve.retrieval.index.tune import timed
from tokensieve.retrieval.scoring.maxsim import maxsim
from tokensieve.retrieval.scoring.ragged import Ragged

BEST, DEPTH = 10, 100
RERANKED = (50, 200)


@dataclass(frozen=True)
class Question:
    """A query and what answers it: names of documents or ids of passages, any of which will do; none if not known."""

    text: str
    relevant: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measured:
    """One way to search: quality (None where no query says what answers it), size, and milliseconds for one query, without
    the encoding of the query."""

    search: str
    vectors: int
    bytes: int
    agreement: float
    ndcg: float | None
    mrr: float | None
    recall: float | None
    median_ms: float
    slow_ms: float

    @property
    def cells(self) -> tuple[str, ...]:
        quality = ["" if v is None else f"{v:.4f}" for v in (self.ndcg, self.mrr, self.recall)]
        times = f"{self.median_ms:.1f}", f"{self.slow_ms:.1f}"
        return (self.search, f"{self.vectors:,}", f"{self.bytes / 1e6:.2f}", f"{self.agreement:.3f}", *quality, *times)


def read_queries(file: Path) -> list[Question]:
    """Questions from lines of ``{"query": text, "relevant": name or list of names}``; ``relevant`` may be left out.

    Raises:
        ValueError: naming the line and the field.
    """
    out = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            read = json.loads(line)
        except json.JSONDecodeError as problem:
            raise ValueError(f"{file}, line {number}: no JSON: {problem}") from problem
        text = read.get("query") if isinstance(read, dict) else None
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{file}, line {number}: query must be a text that is not empty")
        names = read.get("relevant", [])
        names = [names] if isinstance(names, str) else names
        if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
            raise ValueError(f"{file}, line {number}: relevant must be a name or a list of names")
        out.append(Question(text, tuple(names)))
    if not out:
        raise ValueError(f"{file} holds no queries")
    return out


def measure(library: Library, questions: Sequence[Question], full: bool = False) -> list[Measured]:
    """Scoring everything first, then what the index does by itself, then reranking of 50 and 200 candidates.

    Args:
        full: first of all, encode the stored texts again and score by all their vectors, as float32.

    Raises:
        ValueError: the index is empty, or holds nothing that answers one of the queries.
    """
    if not len(library):
        raise ValueError(f"{library.index.folder} holds no passages; there is nothing to measure")
    names = {name for id in library.index.ids() for name in (id, id.rpartition("#")[0])}
    for question in questions:
        if question.relevant and names.isdisjoint(question.relevant):
            raise ValueError(
                f"relevant of {question.text!r}: {question.relevant[0]!r} is no document and no passage of "
                f"{library.index.folder}; correct the name, or leave relevant out"
            )
    asked = library.encoder.queries([q.text for q in questions])
    size = library.index.size
    held = size["vectors"], size["vector_bytes"]

    def by(rerank: int | None) -> Callable[[torch.Tensor], list[str]]:
        return lambda vectors: [h.id for h in library.index.search(vectors, DEPTH, rerank=rerank)]

    ways = [("exact", by(0), held), ("as tuned", by(None), held)]
    ways += [(f"rerank {n}", by(n), held) for n in RERANKED if n < len(library)]
    if full:
        way, vectors = _whole(library)
        ways.insert(1, ("exact, all vectors, float32", way, (vectors, 4 * vectors * library.index.dim)))
    rows: list[Measured] = []
    truth: Sequence[list[str]] = []
    for name, way, (vectors, count) in ways:
        way(asked[0])
        ranked, spent = zip(*(timed(way, asked[i]) for i in range(len(questions))), strict=True)
        truth = truth or ranked
        shared = [len({*a[:BEST]} & {*b[:BEST]}) / max(len(b[:BEST]), 1) for a, b in zip(ranked, truth, strict=True)]
        rows.append(
            Measured(name, vectors, count, float(np.mean(shared)), *_quality(questions, ranked),
                float(np.median(spent)), float(np.percentile(spent, 95)))
        )  # fmt: skip
    return rows


def _quality(questions: Sequence[Question], ranked: Sequence[Sequence[str]]) -> tuple[Any, Any, Any]:
    places = [_place(q.relevant, ids) for q, ids in zip(questions, ranked, strict=True) if q.relevant]
    if not places:
        return None, None, None
    got = {name: float(value.mean()) for name, value in evaluate.measures(np.array(places)).items()}
    return got["nDCG@10"], got["MRR"], got["recall@100"]


def _place(relevant: Sequence[str], ids: Sequence[str]) -> float:
    """The place of the first passage that answers, from 1; infinite where none was found."""
    wanted = set(relevant)
    found = (i for i, name in enumerate(ids, 1) if name in wanted or name.rpartition("#")[0] in wanted)
    return float(next(found, np.inf))


def _whole(library: Library) -> tuple[Callable[[torch.Tensor], list[str]], int]:
    """A search by all vectors of the stored texts, and how many those are."""
    ids = sorted(library.index.ids())
    parts = []
    for start in range(0, len(ids), TOGETHER):
        texts = [m["text"] for m in library.index.metadata(ids[start : start + TOGETHER]) if m]
        parts.append(library.encoder.documents(texts))
    every: Ragged = join(parts).ragged

    def best(vectors: torch.Tensor) -> list[str]:
        order = maxsim(vectors, every).argsort(descending=True, stable=True)[:DEPTH]
        return [ids[i] for i in order.tolist()]

    return best, len(every.tokens)
