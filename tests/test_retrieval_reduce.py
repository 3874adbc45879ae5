"""Reduction of encoded texts, the collection of docstrings, and what is measured on it."""

from __future__ import annotations

import math
import re
import textwrap

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import normalize

import tokensieve as ts
from benchmarks.reference import docstrings
from benchmarks.reference.docstrings import MOST_BODY, collect, passage
from tokensieve.retrieval.encoders import reduce
from tokensieve.retrieval.encoders.encoded import Encoded, ends, join
from tokensieve.retrieval.encoders.reduce import Frequencies
from tokensieve.retrieval.evaluation import evaluate

METHODS = ts.list_methods(site="vectors")


def encoded(lengths, dim=8, seed=0):
    draw = torch.Generator().manual_seed(seed)
    total = sum(lengths)
    signals = {
        "ids": torch.randint(0, 20, (total,), generator=draw),
        "word": torch.arange(total) // 2 % 7,
        "stop": torch.rand(total, generator=draw) < 0.4,
        "received_attention": torch.rand(total, generator=draw),
    }
    spans = torch.arange(2 * total).view(-1, 2)
    vectors = normalize(torch.randn(total, dim, generator=draw), dim=-1)
    x = Encoded(vectors, ends(torch.tensor(lengths)), spans, signals, torch.randn(len(lengths), 4, generator=draw))
    return Frequencies().add(x).mark(x)


def test_the_methods_of_stored_vectors():
    wanted = {"first-k", "idf", "received-attention", "stopwords", "kmeans", "agglomerative", "whole-words", "coverage"}
    assert wanted | {"random", "uniform", "pool", "divprune"} == set(METHODS)
    assert {"first-k", "idf", "received-attention", "stopwords"} == set(ts.catalog.entries(364))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("keep", [1, 4, 0.5, 1.0])
def test_texts_are_reduced_as_if_alone(name, keep, monkeypatch):
    """Ragged texts in batches of several lengths, against each text on its own."""
    monkeypatch.setattr(reduce, "ROWS", 3)
    x = encoded([5, 1, 12, 7, 12, 3, 30, 2])
    out = reduce.reduce(x, name, keep)
    made = ts.get_method(name)
    for i, n in enumerate(x.lengths.tolist()):
        want = min(keep, n) if isinstance(keep, int) else max(1, math.floor(n * keep + 0.5))
        assert out.lengths[i] == want or (made.adaptive and out.lengths[i] < want)
        a, b = x.offsets[i : i + 2].tolist()
        given = {k: x.signals[k][a:b][None] for k in reduce.READ}
        r = made(ts.Signals(features=x[i][None], **given), keep)
        torch.testing.assert_close(out[i], normalize(r.apply(x[i][None])[0], dim=-1), atol=1e-6, rtol=1e-5)
        c, d = out.offsets[i : i + 2].tolist()
        assert out.spans[c:d].tolist() == spanned(x.spans[a:b].tolist(), r)
        assert torch.equal(out.signals["ids"][c:d], x.signals["ids"][a:b][r.kept[0]])
    assert torch.equal(out.single, x.single)
    torch.testing.assert_close(torch.linalg.vector_norm(out.vectors, dim=1), torch.ones(len(out.vectors)))


def spanned(spans, r):
    """The definition: all characters of neighbours that were merged, else those of the one that stays."""
    out = []
    for slot, place in enumerate(r.kept[0].tolist()):
        members = [i for i, owner in enumerate(r.owner[0].tolist()) if owner == slot]
        said = [spans[i] for i in members if spans[i][0] >= 0]
        near = members == list(range(members[0], members[-1] + 1))
        out.append([min(a for a, _ in said), max(b for _, b in said)] if near and said else spans[place])
    return out


def test_neighbours_that_were_merged_stand_for_all_their_characters():
    x = Encoded(
        torch.eye(6), torch.tensor([0, 6]), torch.tensor([[-1, -1], [0, 4], [5, 7], [8, 12], [12, 14], [-1, -1]])
    )
    assert reduce.reduce(x, "pool", 2).spans.tolist() == [[0, 7], [8, 14]]
    assert reduce.reduce(x, "first-k", 2).spans.tolist() == [[-1, -1], [0, 4]]


@pytest.mark.parametrize("held", [1, 300, 2**22])
def test_several_reductions_at_once_score_as_each_alone(held, monkeypatch):
    monkeypatch.setattr(evaluate, "HELD", held)
    monkeypatch.setattr(reduce, "ROWS", 3)
    x, q = encoded([5, 1, 12, 7, 12, 3, 30, 2]), encoded([3, 1, 6], seed=4)
    made = {f"{name} {keep}": (name, keep) for name in METHODS for keep in (1, 4, 0.5, 1.0)}
    scores = evaluate.several(q, x, {k: reduce.as_matrix(x, *v) for k, v in made.items()})
    for key, (name, keep) in made.items():
        alone = reduce.reduce(x, name, keep)
        matrix, offsets = reduce.as_matrix(x, name, keep)
        assert torch.equal(offsets, alone.offsets)
        np.testing.assert_allclose(matrix @ x.vectors.numpy(), alone.vectors.numpy(), atol=1e-6)
        np.testing.assert_allclose(scores[key], evaluate.late_interaction(q, alone), atol=1e-5)


def test_batches_hold_every_text_once():
    lengths = torch.randint(1, 3000, (500,), generator=torch.Generator().manual_seed(0))
    batches = reduce._batches(lengths)
    assert sorted(torch.cat(batches).tolist()) == list(range(500))
    assert all(len(b) <= reduce.ROWS and int(lengths[b].max()) * len(b) <= reduce.BATCH for b in batches)


def test_what_cannot_be_reduced_is_said():
    x = encoded([3, 4])
    with pytest.raises(ValueError, match="fastv runs at prefill"):
        reduce.reduce(x, "fastv", 2)
    with pytest.raises(ts.MissingSignal, match="needs the signal 'idf'"):
        reduce.reduce(Encoded(x.vectors, x.offsets, x.spans), "idf", 2)
    with pytest.raises(ValueError, match="text 1 has no vectors"):
        reduce.reduce(Encoded(x.vectors, torch.tensor([0, 7, 7]), x.spans), "first-k", 2)
    assert len(reduce.reduce(x.rows([]), "first-k", 2)) == 0


@given(st.lists(st.lists(st.integers(-1, 9), min_size=1, max_size=6), min_size=1, max_size=6), st.integers(0, 5))
def test_frequencies_count_texts(texts, gone):
    """Against sets; added in two parts, and some taken out again."""
    flat = torch.tensor([i for text in texts for i in text])
    lengths = [len(t) for t in texts]
    x = Encoded(torch.zeros(len(flat), 2), ends(torch.tensor(lengths)), torch.zeros(len(flat), 2), {"ids": flat})
    gone = min(gone, len(texts) - 1)
    f = Frequencies().add(x.rows(range(gone))).add(x.rows(range(gone, len(texts)))).remove(x.rows(range(gone)))
    left = texts[gone:]
    for token in range(-1, 12):
        want = 0.0 if token < 0 else math.log((1 + len(left)) / (1 + sum(token in t for t in left)))
        assert float(f.idf(torch.tensor([token]))) == pytest.approx(want, abs=1e-6)


# ---- docstrings


def test_a_docstring_becomes_a_query_and_a_passage():
    body = " ".join(f"word{i}" for i in range(200))
    made = passage("m.f", f"Open a file for reading.\n\n    {body}\n    ")
    assert made.query == "Open a file for reading."
    assert made.body == " ".join(body.split()[:MOST_BODY])
    assert passage("m.f", "Too short.\n\n" + body) is None
    assert passage("m.f", "Open a file for reading.\n\nIt is opened.") is None
    assert passage("m.f", f"Open a file for reading.\n\n{body[:400]} open a  FILE for reading. {body}") is None
    assert passage("m.f", "Open a file for reading.") is None


def test_a_collection_of_sources(tmp_path, monkeypatch):
    """Names, order, duplicates, skipped folders and files that do not parse."""

    def text(first, word):
        return f'"""{first} of all things.\n\n{" ".join([word] * 20)}\n"""\n'

    files = {
        "a.py": text("Module text", "alpha")
        + "class C:\n"
        + textwrap.indent(
            text("Class text", "beta") + "def m(self):\n" + textwrap.indent(text("Method text", "gamma"), "    "),
            "    ",
        ),
        "b/__init__.py": text("Package text", "delta"),
        "b/c.py": "async def f():\n" + textwrap.indent(text("method TEXT", "other"), "    "),
        "b/d.py": "def f():\n" + textwrap.indent(text("Another text", "alpha"), "    "),
        "test/e.py": text("Test text", "epsilon"),
        "broken.py": "def (",
    }
    for name, source in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(source)
    monkeypatch.setattr(docstrings, "_root", lambda package: (tmp_path, "here"))
    got = collect(["stdlib"])
    assert [p.name for p in got.passages] == ["a", "a.C", "a.C.m", "b"]
    assert got.digest == collect(["stdlib"]).digest
    halves = [got.queries(held) for held in (True, False)]
    assert sorted(i for _, places in halves for i in places) == [0, 1, 2, 3]
    for queries, places in halves:
        assert queries == [got.passages[i].query for i in places]
    monkeypatch.undo()
    with pytest.raises(ValueError, match="'nowhere_at_all' is no installed package"):
        collect(["nowhere_at_all"])


@pytest.mark.slow
def test_queries_never_stand_in_their_passages():
    got = collect()
    assert len(got.passages) >= 3000
    plain = docstrings._plain
    assert not any(plain(p.query) in plain(p.body) for p in got.passages)
    assert (
        len({plain(p.body) for p in got.passages})
        == len({p.query.casefold() for p in got.passages})
        == len(got.passages)
    )


# ---- measures


def test_ranks_and_measures_by_hand():
    scores = np.array([[3.0, 1.0, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    rank = evaluate.ranks(scores, [2, 3])
    assert rank.tolist() == [2, 4]
    got = evaluate.measures(np.array([1, 2, 10, 11, 100, 101]))
    np.testing.assert_allclose(got["nDCG@10"], [1, 1 / math.log2(3), 1 / math.log2(11), 0, 0, 0])
    np.testing.assert_allclose(got["MRR"], [1, 1 / 2, 1 / 10, 1 / 11, 1 / 100, 1 / 101])
    np.testing.assert_allclose(got["recall@100"], [1, 1, 1, 1, 1, 0])


@pytest.mark.parametrize("together", [1, 2, 64])
def test_late_interaction_is_the_double_loop(together, monkeypatch):
    monkeypatch.setattr(evaluate, "TOGETHER", together)
    q, d = encoded([3, 1, 6], seed=1), encoded([2, 9, 1, 1, 14], seed=2)
    want = [[sum(max(float(a @ b) for b in d[j]) for a in q[i]) for j in range(5)] for i in range(3)]
    np.testing.assert_allclose(evaluate.late_interaction(q, d), want, rtol=1e-5, atol=1e-6)


def test_bm25_is_its_formula():
    docs = ["The cat sat on the mat.", "A cat and a CAT!", "dogs only", ""]
    queries = ["cat on the moon", "dogs", ""]
    words = [re.findall(r"\w+", t.lower()) for t in docs]
    mean = sum(map(len, words)) / len(docs)
    want = np.zeros((3, 4))
    for i, query in enumerate(queries):
        for word in re.findall(r"\w+", query.lower()):
            holding = sum(word in w for w in words)
            idf = math.log(1 + (len(docs) - holding + 0.5) / (holding + 0.5))
            for j, w in enumerate(words):
                n = w.count(word)
                want[i, j] += idf * n * 2.2 / (n + 1.2 * (0.25 + 0.75 * len(w) / mean)) if n else 0
    np.testing.assert_allclose(evaluate.bm25(queries, docs), want, rtol=1e-9)


def test_the_interval_of_a_difference():
    rng = np.random.default_rng(0)
    a = rng.random(400)
    low, high = evaluate.spread(a + 0.1, a + 0.02 * rng.standard_normal(400))
    assert low < 0.1 < high
    assert high - low < 0.01


def test_single_vectors_are_compared_by_cosine():
    x = encoded([2, 3])
    np.testing.assert_allclose(evaluate.single_vector(x, x), (x.single @ x.single.T).numpy())
    with pytest.raises(ValueError, match="makes no single vectors"):
        evaluate.single_vector(join([Encoded(x.vectors, x.offsets, x.spans)]), x)
