"""Runs and judgements in TREC form, and measures by ir-measures."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests.shelf import Words, laid
from tokensieve.cli.main import app
from tokensieve.retrieval.encoders import loading
from tokensieve.retrieval.evaluation import evaluate, trec

IDS = st.text(min_size=1, max_size=8).filter(lambda t: t.encode(errors="ignore").decode() == t)


@given(st.dictionaries(IDS, st.lists(IDS, min_size=1, max_size=5, unique=True), min_size=1, max_size=3))
def test_a_run_is_read_as_it_was_written(tmp_path_factory, found):
    file = tmp_path_factory.mktemp("runs") / "r.trec"
    trec.write_run(file, "my run", {q: [(id, -float(i)) for i, id in enumerate(ids)] for q, ids in found.items()})
    assert trec.read_run(file) == found
    assert all(len(line.split()) == 6 for line in file.read_text().split("\n") if line)


def test_lines_of_others_are_read_and_wrong_ones_named(tmp_path):
    file = tmp_path / "x"
    file.write_text("\ufeffq1 Q0 b 2 0.5 theirs\n\nq1\tQ0\ta%20b\t1\t7\ttheirs\nq2 Q0 c 1 1e-3 theirs\n")
    assert trec.read_run(file) == {"q1": ["a b", "b"], "q2": ["c"]}
    file.write_text("q1 0 a 2\nq1 0 b 0\n")
    assert trec.read_judged(file) == {"q1": {"a": 2, "b": 0}}
    for text, says in (
        ("q1 a b", "line 1: 3 columns"),
        ("q1 Q0 a 1 high x", "score must be a number"),
        ("", "is empty"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=says):
            trec.read_run(file)
    file.write_text("q1 0 a yes")
    with pytest.raises(ValueError, match="line 1: grade must be"):
        trec.read_judged(file)


def test_measures_are_those_of_the_formulas():
    """Where one passage answers, ranks say all."""
    pytest.importorskip("ir_measures")
    places = [1, 2, 10, 11, 100, 101]
    judged = {str(p): {"right": 1} for p in places}
    ranked = {str(p): [*(f"x{i}" for i in range(p - 1)), "right", "more"] for p in places}
    got = trec.quality({**judged, "absent": {"right": 1}}, ranked)
    want = evaluate.measures(np.array([*places, np.inf]))
    for theirs, ours in (("nDCG@10", "nDCG@10"), ("RR", "MRR"), ("R@100", "recall@100")):
        assert got[theirs] == pytest.approx(want[ours].tolist())


def test_a_passage_counts_as_its_document_where_that_is_judged():
    pytest.importorskip("ir_measures")
    judged = {"q": {"a.md": 2, "b.md": 1, "b.md#3": 3}}
    got = trec.quality(judged, {"q": ["a.md#0", "a.md#1", "b.md#3", "b.md#1", "c.md#0"]})
    assert got["nDCG@10"] == pytest.approx([(2 + 3 / np.log2(3) + 1 / 2) / (3 + 2 / np.log2(3) + 1 / 2)])
    assert got["R@100"] == [1.0]


def test_runs_by_command(tmp_path, monkeypatch):
    pytest.importorskip("ir_measures")
    monkeypatch.setattr(loading, "load_encoder", lambda source=None, **_: Words())
    docs = laid(tmp_path / "docs", {"my cat.md": "A cat.", "dog.md": "A dog.", "bird.md": "A bird."})

    def call(*args):
        done = CliRunner().invoke(app, [str(a) for a in args])
        return done.stdout if done.exit_code == 0 else str(done.exception)

    call("index", docs, "--out", tmp_path / "i", "--keep", "1.0", "--codec", "float32")
    (tmp_path / "q").write_text('{"query": "cat", "id": "q1"}\n{"query": "dog", "id": 2}')
    (tmp_path / "qrels").write_text("q1 0 my%20cat.md 1\n2 0 dog.md 2\n2 0 bird.md#0 1\n")
    (tmp_path / "theirs.trec").write_text("q1 Q0 bird.md#0 1 2 t\nq1 Q0 my%20cat.md#0 2 1 t\n2 Q0 dog.md#0 1 1 t\n")
    asked = ("bench-index", tmp_path / "i", "--queries", tmp_path / "q", "--qrels", tmp_path / "qrels")
    out = json.loads(call(*asked, "--run", tmp_path / "theirs.trec", "--out", tmp_path / "runs", "--json"))
    rows = {row["search"]: row for row in out}
    assert rows["exact"]["mrr"] == 1
    assert rows["theirs"]["mrr"] == 0.75
    assert rows["theirs"]["median_ms"] is None
    assert {p.name for p in (tmp_path / "runs").iterdir()} == {"exact.trec", "as-tuned.trec", "rrf.trec"}
    again = json.loads(call(*asked, "--run", tmp_path / "runs" / "exact.trec", "--json"))[-1]
    assert {k: again[k] for k in ("ndcg", "mrr", "recall")} == {k: rows["exact"][k] for k in ("ndcg", "mrr", "recall")}
    assert "theirs" in call(*asked, "--run", tmp_path / "theirs.trec")
    (tmp_path / "other.trec").write_text("q9 Q0 a 1 1 t")
    assert "'q9', which is the id of no query" in call(*asked, "--run", tmp_path / "other.trec")
    (tmp_path / "qrels").write_text("q1 0 gone.md 1")
    assert "'gone.md' is no document" in call(*asked)
    (tmp_path / "qrels").write_text("q7 0 dog.md 1")
    assert "ids of no query" in call(*asked)
    (tmp_path / "q").write_text('{"query": "cat", "id": "a"}\n{"query": "dog", "id": "a"}')
    assert "line 2: id must be a name that no other line has" in call(*asked)
