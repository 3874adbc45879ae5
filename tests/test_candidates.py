"""Candidate stages: pooled vectors, MUVERA encodings and their guarantees, XTR scores, and the choice between ways."""

import pytest
import torch
from torch.nn.functional import normalize

from benchmarks.reference.token_hits_132_135 import colbert, token_hits, xtr
from tokensieve.retrieval import Index, Ragged, maxsim
from tokensieve.retrieval.index import tune
from tokensieve.retrieval.scoring.fde import Fde
from tokensieve.retrieval.scoring.pool import WINDOW, pool
from tokensieve.retrieval.scoring.sketch import SKETCHES, sketch


def unit(*shape, seed=0):
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def sets(lengths, dim, seed=0):
    return Ragged.of([unit(n, dim, seed=seed + i) for i, n in enumerate(lengths)])


def clustered(count, seed=0, dim=32, length=24):
    """Documents of a few topics each, and queries made from some of them."""
    g = torch.Generator().manual_seed(seed)
    centres = normalize(torch.randn(100, dim, generator=g), dim=1)
    topics = torch.randint(0, 100, (count, 4), generator=g)
    token = topics.gather(1, torch.randint(0, 4, (count, length), generator=g))
    docs = normalize(centres[token] + 0.1 * torch.randn(count, length, dim, generator=g), dim=2)
    queries = normalize(docs[:: count // 8, :8][:8] + 0.1 * torch.randn(8, 8, dim, generator=g), dim=2)
    return docs, queries


@pytest.mark.parametrize("name", SKETCHES)
def test_a_document_is_sketched_by_itself(name):
    docs = sets([1, 3, 40, 700, 24], 16)
    made = sketch(name, 16)
    small = made.documents(docs)
    assert small.dim == made.size == made.queries(docs).dim
    assert len(small) == 5
    assert bool((small.lengths > 0).all())
    assert bool(small.tokens.isfinite().all())
    for i, doc in enumerate(docs):
        assert torch.allclose(made.documents(Ragged.of([doc])).tokens, small[i], atol=1e-5)


def test_pooling_counts_and_lengths():
    docs = sets([1, 4, 12, 64, 2 * WINDOW], 16)
    pooled = pool(docs, 8)
    assert pooled.lengths.tolist() == [1, 1, 2, 8, 2 * WINDOW // 8]
    assert torch.allclose(pooled.tokens.norm(dim=1), torch.ones(len(pooled.tokens)), atol=1e-5)
    assert torch.allclose(pooled[0], docs[0], atol=1e-6)
    scaled = pool(Ragged(docs.tokens * 3, docs.offsets), 8)
    assert torch.allclose(scaled.tokens, pooled.tokens * 3, atol=1e-4)


def test_pooling_finds_clusters_and_leaves_none_empty():
    centres = unit(4, 32)
    doc = centres.repeat_interleave(8, 0)
    assert torch.allclose(pool(Ragged.of([doc]), 8)[0], centres, atol=1e-5)
    # Equal tokens make one cluster; the others repeat it rather than stand at zero.
    same = pool(Ragged.of([centres[:1].expand(32, -1)]), 8)[0]
    assert torch.allclose(same, centres[:1].expand(4, -1), atol=1e-5)


def test_a_long_document_is_pooled_in_windows():
    doc = unit(10 * WINDOW, 4)
    windows = pool(Ragged.of(list(doc.split(WINDOW))), 8)
    assert torch.allclose(pool(Ragged.of([doc]), 8).tokens, windows.tokens, atol=1e-5)


def encoded_by_loops(fde, x, average):
    """The definition, from the generator's draws in the same order."""
    draw = torch.Generator().manual_seed(fde.seed)
    parts = []
    for _ in range(fde.repetitions):
        planes = torch.randn(fde.dim, fde.planes, generator=draw)
        signs = torch.randint(0, 2, (fde.dim, fde.width), generator=draw) * 2.0 - 1.0
        hashes = [tuple(int(v @ planes[:, p] >= 0) for p in range(fde.planes)) for v in x]
        for bucket in range(2**fde.planes):
            bits = tuple(bucket >> p & 1 for p in range(fde.planes))
            inside = [v for v, h in zip(x, hashes, strict=True) if h == bits]
            if not inside and average:
                far = [sum(a != b for a, b in zip(h, bits, strict=True)) for h in hashes]
                inside = [x[far.index(min(far))]]
            total = sum(inside) if inside else torch.zeros(fde.dim)
            total = total / len(inside) if average else total
            parts.append(total @ signs / fde.width**0.5)
    return torch.cat(parts) / fde.repetitions**0.5


def test_encodings_follow_the_definition():
    fde = Fde(6, planes=3, repetitions=4, width=5, seed=3)
    docs = sets([1, 2, 9, 30], 6)
    made, queried = fde.documents(docs), fde.queries(docs)
    assert made.shape == (4, fde.size)
    for i, doc in enumerate(docs):
        assert torch.allclose(made[i], encoded_by_loops(fde, doc, average=True), atol=1e-5)
        assert torch.allclose(queried[i], encoded_by_loops(fde, doc, average=False), atol=1e-5)


@pytest.mark.parametrize("planes", [1, 3, 5])
def test_encodings_never_exceed_maxsim(planes):
    """Without projection each query token meets a mean of document tokens, which is no better than the best of them."""
    fde = Fde(16, planes=planes, repetitions=3, width=None)
    docs, queries = sets([1, 5, 40, 100], 16), sets([3, 8], 16, seed=50)
    estimate = fde.queries(queries) @ fde.documents(docs).T
    assert bool((estimate <= maxsim(list(queries), docs) + 1e-4).all())


def test_encodings_come_nearer_with_more_planes():
    docs, queries = sets([30] * 60, 16), sets([8] * 5, 16, seed=500)
    exact = maxsim(list(queries), docs) / 8
    gaps = []
    for planes in (1, 3, 5, 7):
        fde = Fde(16, planes=planes, repetitions=10, width=None)
        gaps.append(float((exact - fde.queries(queries) @ fde.documents(docs).T / 8).mean()))
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 0.75 * gaps[0]


def test_projection_is_unbiased_and_narrows_with_width():
    """Mean over seeds tends to the unprojected estimate; the spread falls as one over the root of the width."""
    docs, queries = sets([20] * 4, 32), sets([6], 32, seed=70)
    spread = {}
    for width in (4, 64):
        made = [Fde(32, 2, 4, width, seed) for seed in range(60)]
        plain = [Fde(32, 2, 4, None, seed) for seed in range(60)]
        errors = torch.stack([f.queries(queries) @ f.documents(docs).T for f in made])
        means = torch.stack([f.queries(queries) @ f.documents(docs).T for f in plain]).mean(0)
        spread[width] = float(errors.std(0).mean())
        assert float((errors.mean(0) - means).abs().max()) < 5 * float(errors.std(0).max()) / 60**0.5
    assert spread[64] < spread[4] / 2


def test_a_document_of_the_querys_tokens_is_found_by_its_encoding():
    """Within epsilon of the best, as the paper's theorem has it: here the best stands apart."""
    docs = sets([30] * 200, 32)
    queries = Ragged.of([docs[i][:10] for i in range(0, 200, 20)])
    fde = Fde(32, planes=4, repetitions=20, width=None)
    found = (fde.queries(queries) @ fde.documents(docs).T).argmax(1)
    assert found.tolist() == list(range(0, 200, 20))


def xtr_loops(query, docs, count):
    scores, hits = [], []
    for q in query:
        tokens = sorted(((float(q @ t), i) for i, d in enumerate(docs) for t in d), reverse=True, key=lambda h: h[0])
        hits.append(tokens[:count])
    for i in range(len(docs)):
        if not any(i == doc for row in hits for _, doc in row):
            scores.append(-torch.inf)
            continue
        total = 0.0
        for row in hits:
            own = [value for value, doc in row if doc == i]
            total += max(own) if own else row[-1][0]
        scores.append(total / len(query))
    return torch.tensor(scores)


@pytest.mark.parametrize("count", [1, 7, 1000])
def test_xtr_equals_its_loops(count, monkeypatch):
    monkeypatch.setattr("benchmarks.reference.token_hits_132_135.BLOCK", 16)
    docs, query = sets([1, 9, 30, 4, 12], 8), unit(5, 8, seed=90)
    value, doc = token_hits(query, docs, count)
    assert torch.allclose(xtr(value, doc, 5), xtr_loops(query, list(docs), count), atol=1e-5)


def test_xtr_with_all_tokens_is_maxsim_and_never_below_with_fewer():
    docs, query = sets([1, 9, 30, 4, 12], 8), unit(5, 8, seed=91)
    exact = maxsim(query, docs) / 5
    assert torch.allclose(xtr(*token_hits(query, docs, 56), 5), exact, atol=1e-5)
    for count in (1, 5, 20):
        score = xtr(*token_hits(query, docs, count), 5)
        assert bool(((score >= exact - 1e-5) | score.isinf()).all())


@pytest.mark.parametrize("count", [1, 4, 56])
def test_colbert_scores_the_documents_that_are_hit_exactly(count):
    docs, query = sets([1, 9, 30, 4, 12], 8), unit(5, 8, seed=92)
    exact, score = maxsim(query, docs), colbert(query, docs, count)
    hit = {i for q in query for i in torch.cat([(d @ q) for d in docs]).topk(count).indices.tolist()}
    owner = torch.arange(5).repeat_interleave(docs.lengths)
    reached = torch.zeros(5, dtype=torch.bool)
    reached[owner[sorted(hit)]] = True
    assert torch.equal(score > -torch.inf, reached)
    assert torch.allclose(score[reached], exact[reached], atol=1e-5)


@pytest.mark.parametrize("name", ["pooled", "mean", "fde"])
def test_reranked_scores_are_exact_and_all_reranked_is_exact(tmp_path, name):
    docs, queries = clustered(400)
    index = Index.create(tmp_path / "i", 32, "float32", sketch=name)
    index.add(docs[:300])
    index.add(docs[300:])
    exact = {h.id: h.score for h in index.search(queries[0], k=400, rerank=0)}
    for hit in index.search(queries[0], k=20, rerank=50):
        assert hit.score == pytest.approx(exact[hit.id], abs=1e-4)
    every = index.search(queries[0], k=10, rerank=400)
    assert [h.id for h in every] == [h.id for h in index.search(queries[0], k=10, rerank=0)]
    assert len(index.search(queries[0], k=30, rerank=5)) == 30


def test_candidates_are_sought_among_the_admitted_only(tmp_path):
    docs, queries = clustered(400)
    index = Index.create(tmp_path / "i", 32, "int8")
    index.add(docs, metadata=[{"rare": i % 40 == 7} for i in range(400)])
    index.delete(["7"])
    hits = index.search(queries, k=9, where={"rare": True}, rerank=9)
    assert all({h.id for h in found} == {str(i) for i in range(47, 400, 40)} for found in hits)


def test_pooled_candidates_hold_the_best(tmp_path):
    docs, queries = clustered(2000)
    index = Index.create(tmp_path / "i", 32, "int8")
    index.add(docs)
    shared = 0
    for rough, exact in zip(index.search(queries, rerank=200), index.search(queries, rerank=0), strict=True):
        shared += len({h.id for h in rough} & {h.id for h in exact})
    assert shared >= 0.95 * 80


def test_a_damaged_sketch_costs_time_not_documents(tmp_path):
    docs, queries = clustered(400)
    index = Index.create(tmp_path / "i", 32, "int8")
    index.add(docs)
    exact = index.search(queries, rerank=0)
    (segment,) = (v.segment for v in index._state.views)
    assert segment.sketch is not None
    segment.sketch._seen[:] = -1
    assert index.search(queries, rerank=10) == exact
    assert "sketch block" in index.damaged[0]


def test_the_measured_plan_is_kept_and_obeyed(tmp_path, monkeypatch):
    docs, queries = clustered(2000)
    index = Index.create(tmp_path / "i", 32, "int8")
    index.add(docs)
    asked = []
    plain = tune.search.two_stage
    monkeypatch.setattr(tune.search, "two_stage", lambda *a: asked.append(a[5]) or plain(*a))
    index.search(queries[0])
    assert asked == []
    plan = index.tune(queries)
    assert (plan["documents"], sorted(plan["depths"])) == (2000, ["10", "100", "50"])
    assert 0 < plan["depths"]["10"] <= plan["depths"]["50"] <= plan["depths"]["100"]
    assert plan["recall"] >= 0.99
    assert index.tune(queries) == plan  # no clock has a say
    again = Index.open(index.folder)
    again.search(queries[0], 1000)
    assert asked == []  # gathering so many is dearer than scoring all
    monkeypatch.setattr(tune, "GATHER", 0)
    for k in (1, 10, 30, 100, 200):
        again.search(queries[0], k)
        assert asked.pop() == max(tune.depth_at(plan["depths"], k), k)


def test_depth_grows_with_what_is_asked_for():
    depths = {"10": 20, "50": 100, "100": 300}
    assert [tune.depth_at(depths, k) for k in (1, 10, 30, 50, 75, 100, 200)] == [20, 20, 60, 100, 200, 300, 600]


def test_the_best_are_found_by_candidates(tmp_path):
    """At every number of hits, on queries that nothing was tuned by."""
    docs, queries = clustered(2000)
    index = Index.create(tmp_path / "i", 32, "int8")
    index.add(docs)
    index.tune(queries[: len(queries) // 2])
    for k in (1, 10, 50, 100):
        shared = [
            len({h.id for h in index.search(q, k)} & {h.id for h in index.search(q, k, rerank=0)}) / k
            for q in queries[len(queries) // 2 :]
        ]
        assert sum(shared) / len(shared) >= 0.99


def test_what_a_query_was_made_of_does_not_find_itself(tmp_path):
    """A stored document among the queries would need no depth at all."""
    docs, _ = clustered(400)
    index = Index.create(tmp_path / "i", 32, "float32")
    ids = index.add(docs)
    own = [docs[i][:4] for i in range(12)]
    with_itself = index.tune(own)["depths"]["10"]
    assert index.tune(own, without=ids[:12])["depths"]["10"] >= with_itself
    with pytest.raises(ValueError, match="without names 1 documents; it names one for each query"):
        index.tune(own, without=ids[:1])


def test_a_plan_holds_until_the_index_has_doubled(tmp_path):
    docs, _ = clustered(100)
    index = Index.create(tmp_path / "i", 32, "int8")
    index.add(docs)
    plan = {"depths": {"10": 20}, "share": 0.1, "documents": 60}
    manifest = {**index._state.manifest, "plan": plan}
    state = tune.Snapshot(manifest, index._state.codec, index._state.sketch, index._state.views, {})
    admitted = [torch.ones(100, dtype=torch.bool)]
    assert tune.rerank(state, admitted, 10) == 20
    # Gathering so many of fewer is dearer than scoring all of them.
    assert tune.rerank(state, [torch.arange(100) < 40], 10) == 0
    manifest["plan"] = plan | {"documents": 49}
    assert tune.rerank(state, admitted, 10) == 0
    # The plan of an earlier release was measured on another thing.
    manifest["plan"] = {"rerank": 20, "above": 50, "documents": 60}
    assert tune.rerank(state, admitted, 10) == 0
