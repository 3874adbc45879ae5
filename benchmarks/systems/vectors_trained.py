"""Checks of trained heads for stored vectors, on docstrings encoded by MiniLM; held-out queries only."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.reference.poly_encoder_188 import PolyEncoder
from benchmarks.systems.bed import CheckContext, Outcome, check
from benchmarks.trained import (
    OUT,
    PASSAGES,
    STEPS,
    found,
    held_out,
    mean,
    measured,
    named_held_out,
    named_training,
    ndcg,
    train,
    training,
)
from tokensieve.retrieval.encoders.encoded import Encoded
from tokensieve.retrieval.encoders.head import through
from tokensieve.retrieval.encoders.loading import load_encoder
from tokensieve.retrieval.encoders.reduce import reduce
from tokensieve.retrieval.evaluation.evaluate import late_interaction, ranks, single_vector
from tokensieve.retrieval.heads.colberter import ColBERTer, lexical
from tokensieve.retrieval.heads.contrast import chamfer, fit, in_batch, pad
from tokensieve.retrieval.heads.crisp import Crisp
from tokensieve.retrieval.heads.projection import Projection

SEEDS = 5


def projection(seed: int, form: str = "linear") -> Projection:
    torch.manual_seed(seed)
    return Projection(held_out()[0].vectors.shape[1], OUT, form)


@check(130)
def crisp(_: CheckContext) -> Outcome:
    """Docstrings, 4x fewer vectors of passages: a head trained on its own centroids is above k-means afterwards (queries
    clustered or whole, alike on both sides) and, with whole queries, above token pruning; two seeds."""
    rows: dict[str, list[float]] = {}
    queries, documents, _places = held_out()
    rows["frozen"] = [found(queries, documents)]
    for seed in (0, 1):
        plain = train(projection(seed), seed, "conventional")
        q, d = through(plain, queries, True), through(plain, documents, False)
        now = {"head, all vectors": found(q, d), "k-means afterwards": measured(Crisp(plain))}
        for name in ("kmeans", "idf", "received-attention", "first-k", "random"):
            now[f"{name} afterwards, whole queries"] = found(q, reduce(d, name, 0.25, seed=seed))
        now["crisp"] = measured(train(Crisp(projection(seed)), seed, "crisp"))
        for name, method in (("crisp", "kmeans"), ("first-k trained", "first-k")):
            head = Crisp(projection(seed), query_keep=1.0, method=method)
            now[f"{name}, whole queries"] = measured(train(head, seed, name))
        for name, value in now.items():
            rows.setdefault(name, []).append(value)
    n: dict[str, Any] = {name: mean(values) for name, values in rows.items()}
    best = n["crisp, whole queries"]
    shown = n["crisp"] > n["k-means afterwards"] and all(
        best > value for name, value in n.items() if name.endswith("whole queries") and not name.startswith("crisp")
    )
    return shown, n


@check(133)
def projections(_: CheckContext) -> Outcome:
    """Docstrings, heads of equal output width, two rounds over the pairs, five seeds (one of the other forms): residual
    upscaled above single linear."""
    n: dict[str, Any] = {"frozen": mean([found(*held_out()[:2])])}
    for form, seeds in (("linear", SEEDS), ("residual", SEEDS), ("feedforward", 1), ("glu", 1)):
        values = [measured(train(projection(s, form), s, f"{form} {s}", STEPS * 2 // 3)) for s in range(seeds)]
        n[form] = mean(values)
        n[f"{form}, by seed"] = [round(v, 4) for v in values]
    return n["residual"] > n["linear"], n


WEIGHT = 0.3
"""Of the gates' L1 in the loss."""


def joined_loss(head: ColBERTer, index: Tensor) -> Tensor:
    """In-batch losses of the fused and of the pooled score, and what gates cost."""
    queries, documents = (part.rows(index) for part in named_training())
    q, _, qp, qo = head.words(queries.vectors, queries.offsets, queries.signals["word"], True)
    d, gate, dp, do = head.words(documents.vectors, documents.offsets, documents.signals["word"], False)
    if head.exact:
        known, at = torch.cat([queries.signals["word"][qp], documents.signals["word"][dp]]).unique(return_inverse=True)
        at = at.where(known[at] >= 0, -1)
        sides = [lexical(q, at[: len(qp)], qo, len(known)), lexical(d, at[len(qp) :], do, len(known))]
        refined = sides[0] @ sides[1].T / qo.diff()[:, None]
    else:
        refined = chamfer(*pad(q, qo), *pad(d, do))
    assert queries.single is not None
    assert documents.single is not None
    pooled = normalize(head.pool(queries.single), dim=-1) @ normalize(head.pool(documents.single), dim=-1).T
    return in_batch(head.fused(pooled, refined)) + in_batch(pooled) + WEIGHT * gate.mean()


def joined(seed: int, what: str, **form: bool) -> ColBERTer:
    torch.manual_seed(seed)
    head = ColBERTer(held_out()[0].vectors.shape[1], OUT, **form)
    fit([head], partial(joined_loss, head), len(named_training()[0]), steps=STEPS, seed=seed, what=what)
    return head


@torch.no_grad()
def fused(head: ColBERTer, queries: Encoded, documents: Encoded) -> float:
    """nDCG@10 by both scores."""
    if head.exact:
        size = int(max(queries.signals["word"].max(), documents.signals["word"].max())) + 1
        sides = [lexical(e.vectors, e.signals["word"], e.offsets, size) for e in (queries, documents)]
        refined = sides[0] @ sides[1].T
    else:
        refined = torch.from_numpy(late_interaction(queries, documents))
    pooled = torch.from_numpy(single_vector(queries, documents))
    scores = head.fused(pooled, refined / queries.lengths[:, None])
    return ndcg(ranks(scores.numpy(), held_out()[2]))


@check(131)
def colberter(_: CheckContext) -> Outcome:
    """Docstrings, words that the gate leaves, at least 2x fewer than tokens: nDCG@10 above words left by chance from a head
    without gate, equally many of each passage's share; bytes a passage in float16 with its pooled vector; one seed, three
    draws."""
    queries, documents = named_held_out()
    n: dict[str, Any] = {"all vectors, linear head": round(measured(train(projection(0), 0, "conventional")), 4)}
    sizes = {}
    gated = joined(0, "gated", gated=True)
    q, d = through(gated, queries, True), through(gated, documents, False)
    n["gated words"], sizes["gated words"] = round(fused(gated, q, d), 4), len(d.vectors) * OUT
    words = joined(0, "words", gated=False)
    q, whole = through(words, queries, True), through(words, documents, False)
    n["all words"], sizes["all words"] = round(fused(words, q, whole), 4), len(whole.vectors) * OUT
    share = len(d.vectors) / len(whole.vectors)
    n["by chance"] = mean([fused(words, q, reduce(whole, "random", share, seed=s)) for s in range(3)])
    n["by idf"] = round(fused(words, q, reduce(whole, "idf", share)), 4)
    exact = joined(0, "exact", gated=True, exact=True)
    q, d1 = through(exact, queries, True), through(exact, documents, False)
    # A number and the word it belongs to, in two bytes each.
    n["one number a word"], sizes["one number a word"] = round(fused(exact, q, d1), 4), len(d1.vectors) * 2
    n["fewer"] = round(len(documents.vectors) / len(d.vectors), 2)
    sizes["all vectors"] = len(documents.vectors) * OUT - PASSAGES * OUT
    n["bytes a passage"] = {name: round(2 * (OUT + size / PASSAGES)) for name, size in sizes.items()}
    return n["fewer"] >= 2 and n["gated words"] > n["by chance"], n


@check(188)
def poly(_: CheckContext) -> Outcome:
    """Docstrings, passages as m vectors: recall@1 rises with m from the mean-pooled bi-encoder on, two seeds; scoring a
    passage costs less than a tenth of cross-attention over query and passage (MiniLM's layers, in one run)."""
    queries, documents, places = held_out()
    n: dict[str, Any] = {}
    asked, asked_mask = pad(queries.vectors, queries.offsets)
    for codes in (0, 4, 16, 64):
        hits = []
        for seed in (0, 1):
            head = trained_poly(codes, seed)
            with torch.no_grad():
                parts = [documents.rows(rows) for rows in torch.arange(PASSAGES).split(100)]
                stored = torch.cat([head.summary(*pad(p.vectors, p.offsets)) for p in parts])
                scores = head.score(stored, head.candidates(asked, asked_mask))
            hits.append(float((ranks(scores.numpy(), places) == 1).mean()))
        n["bi-encoder" if codes == 0 else f"m={codes}"] = mean(hits)
    one = head.candidates(asked[:1], asked_mask[:1]).detach()
    n["cross-attention costs"] = round(cross_seconds() / (seconds(lambda: head.score(stored, one)) / PASSAGES))
    rises = [n["bi-encoder"], n["m=4"], n["m=16"], n["m=64"]]
    return rises == sorted(set(rises)) and n["cross-attention costs"] >= 10, n


def trained_poly(codes: int, seed: int) -> PolyEncoder:
    torch.manual_seed(seed)
    width = held_out()[0].vectors.shape[1]
    head = PolyEncoder(width, width, codes)
    queries, documents = training()

    def loss(index: Tensor) -> Tensor:
        q, d = queries.rows(index), documents.rows(index)
        stored = head.summary(*pad(d.vectors, d.offsets))
        return in_batch(head.score(stored, head.candidates(*pad(q.vectors, q.offsets))))

    fit([head], loss, len(queries), steps=STEPS, seed=seed, what=f"m={codes}, seed {seed}")
    return head


@torch.no_grad()
def cross_seconds() -> float:
    """Of one query and one passage read together by MiniLM, in batches of 20."""
    queries, documents, _ = held_out()
    long = int(queries.lengths.float().mean() + documents.lengths.float().mean())
    ids = torch.randint(1000, 20000, (20, long))
    model = load_encoder().model  # type: ignore[attr-defined]
    return seconds(lambda: model(input_ids=ids)) / len(ids)


def seconds(run: Callable[[], Any]) -> float:
    """The shortest of five runs, behind one that is not counted."""
    run()
    taken = []
    for _ in range(5):
        start = perf_counter()
        run()
        taken.append(perf_counter() - start)
    return min(taken)
