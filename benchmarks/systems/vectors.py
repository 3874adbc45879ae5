"""Checks of the family vectors, on docstrings encoded by MiniLM (cached in `out/encoded`)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks import retrieval
from benchmarks.reference.token_hits_132_135 import token_hits, xtr
from benchmarks.systems.bed import SEED, Outcome, check
from benchmarks.systems.bed import CheckContext as Testbed
from tokensieve.retrieval.encoders.encoded import Encoded
from tokensieve.retrieval.evaluation.evaluate import late_interaction, measures, ranks, several, single_vector
from tokensieve.retrieval.scoring.fde import Fde
from tokensieve.retrieval.scoring.maxsim import maxsim
from tokensieve.retrieval.scoring.ragged import Ragged

PASSAGES, QUERIES, DRAWS = 1500, 300, 3


@cache
def bed() -> retrieval.CheckContext:
    return retrieval.CheckContext(PASSAGES, slice(QUERIES))


@cache
def exact() -> np.ndarray:
    """``(Q, D)``: MaxSim with all vectors."""
    return late_interaction(bed().queries, bed().documents)


def ndcg(rank: np.ndarray) -> float:
    return round(float(measures(rank)["nDCG@10"].mean()), 4)


def mrr10(rank: np.ndarray) -> float:
    return round(float(np.where(rank <= 10, 1 / rank, 0.0).mean()), 4)


def full() -> np.ndarray:
    return ranks(exact(), bed().relevant)


def kept(*names: str, keep: float) -> dict[str, list[np.ndarray]]:
    """Ranks by method; those of several draws for `random`."""
    made = {(n, s): bed().matrix(n, keep, s) for n in names for s in range(DRAWS if n == "random" else 1)}
    scores = several(bed().queries, bed().documents, made)
    return {n: [ranks(s, bed().relevant) for (m, _), s in scores.items() if m == n] for n in names}


def average(quality: Callable[[np.ndarray], float], found: list[np.ndarray]) -> float:
    return round(float(np.mean([quality(rank) for rank in found])), 4)


@check(364)
def token_pruning(_: Testbed) -> Outcome:
    """Docstrings, 30% of vectors removed by IDF or attention: MRR@10 within 2% of full, above random removal."""
    n = {"full": mrr10(full())}
    found = kept("idf", "received-attention", "first-k", "stopwords", "random", keep=0.7)
    n |= {name: average(mrr10, each) for name, each in found.items()}
    return any(n[k] >= 0.98 * n["full"] and n[k] > n["random"] for k in ("idf", "received-attention")), n


@check(132)
def xtr_(_: Testbed) -> Outcome:
    """Docstrings: missing similarities imputed beat zeros on nDCG@10, within 2 points of MaxSim, under 5% of vectors read."""
    docs, hits = bed().documents.ragged, 400
    imputed, zeros, read = [], [], []
    for query in bed().queries.ragged:
        value, doc = token_hits(query, docs, hits)
        imputed.append(xtr(value, doc, PASSAGES).numpy())
        best = torch.zeros(len(query), PASSAGES).scatter_reduce_(1, doc, value, "amax")
        zeros.append(best.mean(0).numpy())
        read.append(min(len(query) * hits / len(docs.tokens), 1.0))
    n: dict[str, Any] = {"maxsim": ndcg(full())}
    n["imputed"], n["zeros"] = (ndcg(ranks(np.stack(s), bed().relevant)) for s in (imputed, zeros))
    n["vectors read"] = round(float(np.mean(read)), 4)
    return n["imputed"] > n["zeros"] and n["imputed"] >= n["maxsim"] - 0.02 and n["vectors read"] < 0.05, n


def candidates(score: Tensor, best: Tensor, count: int) -> float:
    """How much of the exact top 10 (``best``, ``(Q, 10)``) is among the ``count`` best of a cheaper score ``(Q, D)``."""
    found = score.topk(count, 1).indices
    return float((best[:, :, None] == found[:, None]).any(2).float().mean())


def sets(count: int, tokens: int, dim: int, seed: int) -> Ragged:
    draw = torch.Generator().manual_seed(seed)
    x = normalize(torch.randn(count * tokens, dim, generator=draw), dim=-1)
    return Ragged(x, torch.arange(count + 1) * tokens)


def compared(queries: Ragged, docs: Ragged, repetitions: tuple[int, ...]) -> dict[str, float]:
    """Correlation with MaxSim by repetitions, and the exact top 10 found in the best 100 of each cheap score."""
    scores = maxsim(list(queries), docs)
    best = scores.topk(10, 1).indices
    n = {}
    for r in repetitions:
        made = Fde(docs.dim, planes=4, repetitions=r, width=16, seed=SEED)
        guess = made.queries(queries) @ made.documents(docs).T
        pairs = zip(guess, scores, strict=True)
        n[f"r at {r}"] = round(float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in pairs])), 3)
    n["fde"] = round(candidates(guess, best, 100), 3)
    means = [normalize(torch.stack([t.mean(0) for t in s]), dim=-1) for s in (queries, docs)]
    n["means"] = round(candidates(means[0] @ means[1].T, best, 100), 3)
    single = torch.stack([maxsim(query[:, None], docs).amax(0) for query in queries])
    n["tokens"] = round(candidates(single, best, 100), 3)
    return n


@check(134)
def muvera(_: Testbed) -> Outcome:
    """Random vectors and docstrings: correlation with MaxSim rises with repetitions; recall@100 above means and tokens."""
    n: dict[str, Any] = {}
    q = bed().queries.rows(range(100))
    for name, queries, docs in (
        ("random", sets(100, 8, 64, 1), sets(1000, 32, 64, 2)),
        ("docstrings", q.ragged, bed().documents.ragged),
    ):
        n |= {f"{name}, {k}": v for k, v in compared(queries, docs, (1, 5, 20)).items()}
    shown = True
    for name in ("random", "docstrings"):
        rises = [n[f"{name}, r at {r}"] for r in (1, 5, 20)]
        found = n[f"{name}, fde"]
        shown &= rises == sorted(set(rises)) and found > max(n[f"{name}, means"], n[f"{name}, tokens"])
    return shown, n


@check(135)
def colbert(_: Testbed) -> Outcome:
    """Docstrings: MaxSim equals loops, two stages find 95% of the exact top 10, nDCG@10 above mean-pooled vectors."""
    queries, documents = bed().queries, bed().documents
    n: dict[str, Any] = {
        "maxsim": ndcg(full()),
        "means": ndcg(ranks(single_vector(queries, documents), bed().relevant)),
    }
    n["equal to loops"] = all(_close(queries, documents, i, j) for i in range(5) for j in range(0, PASSAGES, 100))
    found, reranked = [], []
    for i in range(100):
        docs = token_hits(queries[i], documents.ragged, 64)[1].unique()
        score = maxsim(queries[i], documents.rows(docs).ragged)
        two = set(docs[score.topk(min(10, len(docs))).indices].tolist())
        found.append(len(two & set(np.argsort(-exact()[i], kind="stable")[:10].tolist())) / 10)
        reranked.append(len(docs) / PASSAGES)
    n["top 10 found"], n["reranked"] = (round(float(np.mean(v)), 3) for v in (found, reranked))
    return n["equal to loops"] and n["top 10 found"] > 0.95 and n["maxsim"] > n["means"], n


def _close(queries: Encoded, documents: Encoded, i: int, j: int) -> bool:
    loops = sum(max(float(a @ b) for b in documents[j]) for a in queries[i])
    return bool(abs(loops - exact()[i, j]) < 1e-4)
