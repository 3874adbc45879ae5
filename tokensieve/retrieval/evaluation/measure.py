"""Measure: how well and how fast an index answers queries, against scoring everything."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tokensieve.retrieval.encoders.encoded import join
from tokensieve.retrieval.evaluation import trec
from tokensieve.retrieval.index import marks
from tokensieve.retrieval.index.fusion import Fuse
from tokensieve.retrieval.index.put import TOGETHER
from tokensieve.retrieval.index.searching import Searching
from tokensieve.retrieval.index.tune import timed
from tokensieve.retrieval.scoring.maxsim import maxsim
from tokensieve.retrieval.scoring.ragged import Ragged
from tokensieve.retrieval.scoring.words import phrases, unquoted

BEST, DEPTH = 10, 100
RERANKED = (50, 200)


@dataclass(frozen=True)
class Question:
    """A query and what answers it: names of documents or ids of passages, any of which will do; none if not known. ``id`` is what
    runs and judgements call it."""

    text: str
    relevant: tuple[str, ...] = ()
    id: str = ""


@dataclass(frozen=True)
class Measured:
    """One way to search: quality (None where no query says what answers it), size, and milliseconds for one query, without
    the encoding of the query (None of a run that was read)."""

    search: str
    vectors: int
    bytes: int
    agreement: float
    ndcg: float | None
    mrr: float | None
    recall: float | None
    median_ms: float | None
    slow_ms: float | None

    @property
    def cells(self) -> tuple[str, ...]:
        quality = ["" if v is None else f"{v:.4f}" for v in (self.ndcg, self.mrr, self.recall)]
        times = ["" if v is None else f"{v:.1f}" for v in (self.median_ms, self.slow_ms)]
        size = (f"{self.vectors:,}", f"{self.bytes / 1e6:.2f}") if self.vectors else ("", "")
        return (self.search, *size, f"{self.agreement:.3f}", *quality, *times)


def read_queries(file: Path) -> list[Question]:
    """Questions from lines of ``{"query": text, "relevant": name or list of names, "id": name}``; the last two may be left out,
    and a question is then called by the number of its line.

    Raises:
        ValueError: naming the line and the field.
    """
    out: list[Question] = []
    seen: set[str] = set()
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), 1):
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
        id = read.get("id", str(number))
        if not isinstance(id, (str, int)) or not str(id) or str(id) in seen:
            raise ValueError(f"{file}, line {number}: id must be a name that no other line has, not {id!r}")
        seen.add(str(id))
        out.append(Question(text, tuple(names), str(id)))
    if not out:
        raise ValueError(f"{file} holds no queries")
    return out


def measure(
    library: Searching, questions: Sequence[Question], full: bool = False, *, judged: trec.Judged | None = None,
    runs: Mapping[str, Mapping[str, Sequence[str]]] | None = None, out: Path | None = None,
) -> list[Measured]:  # fmt: skip
    """Scoring everything first, then what the index does by itself, then reranking of 50 and 200 candidates, then words beside
    MaxSim.

    Args:
        full: first of all, encode the stored texts again and score by all their vectors, as float32.
        judged: how well documents or passages answer each question, by its id; in the place of ``relevant``.
        runs: by name, what other systems have found for the questions, by their ids.
        out: a folder into which each way's run is written, in TREC form.

    Raises:
        ValueError: the index is empty, or holds nothing that answers one of the queries; runs are of other questions.
    """
    if not len(library):
        raise ValueError(f"{library.folder} holds no passages; there is nothing to measure")
    wanted, known = _judged(library, questions, judged)
    names = [q.id or str(i) for i, q in enumerate(questions, 1)]
    asked = library.encoder.queries([unquoted(q.text) for q in questions])
    size = library.size
    held = size["vectors"], size["vector_bytes"]

    def by(rerank: int | None, fuse: Fuse = "none") -> Callable[[torch.Tensor, str], Found]:
        def way(vectors: torch.Tensor, text: str) -> Found:
            words = [text] if fuse != "none" or phrases(text) else None
            hits = library.hits([vectors], DEPTH, rerank=rerank, words=words, fuse=fuse)[0]
            return [(h.id, h.score if h.fused is None else h.fused) for h in hits]

        return way

    ways = [("exact", by(0), held), ("as tuned", by(None), held)]
    ways += [(f"rerank {n}", by(n), held) for n in RERANKED if n < len(library)]
    ways.append(("rrf", by(None, "rrf"), held))
    if full:
        way, vectors = _whole(library)
        dim = library.encoder.identity.dim
        ways.insert(1, ("exact, all vectors, float32", way, (vectors, 4 * vectors * dim)))
    rows: list[Measured] = []
    truth: list[list[str]] = []
    for name, way, (vectors, count) in ways:
        way(asked[0], questions[0].text)
        ranked, spent = zip(*(timed(way, asked[i], q.text) for i, q in enumerate(questions)), strict=True)
        ids = [[id for id, _ in found] for found in ranked]
        truth = truth or ids
        times = float(np.median(spent)), float(np.percentile(spent, 95))
        rows.append(Measured(name, vectors, count, _shared(ids, truth), *_quality(wanted, known, names, ids), *times))
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            trec.write_run(
                out / f"{name.replace(', ', '-').replace(' ', '-')}.trec", name, dict(zip(names, ranked, strict=True))
            )
    for name, run in (runs or {}).items():
        if not set(run) & set(names):
            raise ValueError(
                f"run {name}: it answers {next(iter(run))!r}, which is the id of no query; see `id` of a line"
            )
        ids = [list(run.get(query, ())) for query in names]
        rows.append(Measured(name, 0, 0, _shared(ids, truth), *_quality(wanted, known, names, ids), None, None))
    return rows


Found = list[tuple[str, float]]
ANSWER = "answer"


def _judged(
    library: Searching, questions: Sequence[Question], judged: trec.Judged | None
) -> tuple[trec.Judged, Mapping[str, frozenset[str]]]:
    """Grades by the ids of questions; and of those that say `relevant`, the names any of which will do."""
    names = {name for id in library.ids() for name in (id, id.rpartition("#")[0])}
    for i, question in enumerate(questions, 1):
        relevant = question.relevant if judged is None else tuple(judged.get(question.id or str(i), ()))
        if relevant and names.isdisjoint(relevant):
            where = "relevant" if judged is None else "the judgement"
            raise ValueError(
                f"{where} of {question.text!r}: {relevant[0]!r} is no document and no passage of {library.folder}; correct "
                "the name, or leave it out"
            )
    if judged is not None:
        asked = [q.id or str(i) for i, q in enumerate(questions, 1)]
        some = {id: judged[id] for id in asked if id in judged}
        if not some:
            raise ValueError(f"judgements are of {next(iter(judged))!r} and others, which are ids of no query")
        return some, {}
    known = {q.id or str(i): frozenset(q.relevant) for i, q in enumerate(questions, 1) if q.relevant}
    return {id: {ANSWER: 1} for id in known}, known


def _quality(
    judged: trec.Judged, known: Mapping[str, frozenset[str]], names: Sequence[str], ranked: Sequence[Sequence[str]]
) -> tuple[float | None, float | None, float | None]:
    if not judged:
        return None, None, None
    # Any of several answers will do: the first that is found is the answer.
    said = {
        name: [ANSWER if {id, id.rpartition("#")[0]} & known.get(name, frozenset()) else id for id in ids]
        for name, ids in zip(names, ranked, strict=True)
    }
    ndcg, mrr, recall = (float(np.mean(values)) for values in trec.quality(judged, said).values())
    return ndcg, mrr, recall


def _shared(ranked: Sequence[Sequence[str]], truth: Sequence[Sequence[str]]) -> float:
    each = [len({*a[:BEST]} & {*b[:BEST]}) / max(len(b[:BEST]), 1) for a, b in zip(ranked, truth, strict=True)]
    return float(np.mean(each))


def _whole(library: Searching) -> tuple[Callable[[torch.Tensor, str], Found], int]:
    """A search by all vectors of the stored texts, and how many those are."""
    ids = sorted(library.ids())
    parts = []
    for start in range(0, len(ids), TOGETHER):
        texts = [_said(m) for m in library.metadata(ids[start : start + TOGETHER]) if m]
        parts.append(library.encoder.documents(texts))
    every: Ragged = join(parts).ragged

    def best(vectors: torch.Tensor, text: str) -> Found:
        scores = maxsim(vectors, every)
        order = scores.argsort(descending=True, stable=True)[:DEPTH]
        return [(ids[i], float(scores[i])) for i in order.tolist()]

    return best, len(every.tokens)


def _said(held: Mapping[str, Any]) -> str:
    """What was encoded of a passage."""
    context = held.get(marks.CONTEXT)
    return f"{context}\n{held['text']}" if context else held["text"]
