"""The commands of retrieval, as a person meets them; a small encoder stands for the real one."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.shelf import Words, laid
from tokensieve.cli.main import app
from tokensieve.retrieval import IndexProblem, maxsim
from tokensieve.retrieval.encoders import loading
from tokensieve.retrieval.evaluation import evaluate
from tokensieve.retrieval.evaluation.measure import measure, read_queries
from tokensieve.retrieval.index import put
from tokensieve.retrieval.index.library import Library
from tokensieve.retrieval.index.recipe import Recipe
from tokensieve.retrieval.shards import build

FILES = {
    "read.md": "# Reading\n\nOpen a file and read it line by line.",
    "socket.py": '"""Close a network socket."""',
    "cat.html": "<p>A cat &amp; a dog.</p>",
    **{f"note{i}.txt": f"note {i} of nothing much, number {i * i}" for i in range(20)},
}


EXACT = ("--keep", "1.0", "--codec", "float32")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    build._encoder.cache_clear()
    monkeypatch.setattr(loading, "load_encoder", lambda source=None, **_: Words())
    yield
    build._encoder.cache_clear()


@pytest.fixture
def docs(tmp_path):
    folder = laid(tmp_path / "docs", FILES)
    (folder / "image.png").write_bytes(b"\x89PNG\0")
    return folder


def call(*args, code=0):
    done = CliRunner().invoke(app, [str(a) for a in args])
    assert done.exit_code == code, (done.output, done.exception)
    return done.stdout


def problem(*args):
    done = CliRunner().invoke(app, [str(a) for a in args])
    assert isinstance(done.exception, (ValueError, OSError, IndexProblem)), done.output
    return str(done.exception)


def test_what_a_new_index_is_made_by_and_an_earlier_one_stays_by(tmp_path, docs):
    call("index", docs, "--out", tmp_path / "new")
    assert Library.open(tmp_path / "new").recipe == Recipe(None, "pool", 0.5, "binary", "signs")
    earlier = ("--method", "agglomerative", "--keep", "1.0", "--codec", "int8", "--sketch", "pooled")
    call("index", docs, "--out", tmp_path / "old", *earlier)
    (docs / "more.md").write_text("What came later.")
    assert "1 files written" in call("index", docs, "--out", tmp_path / "old")
    held = Library.open(tmp_path / "old")
    assert held.recipe == Recipe(None, "agglomerative", 1.0, "int8", "pooled")
    assert held.size["vector_bytes"] == held.size["vectors"] * (16 + 2)


def test_index_again_and_search(tmp_path, docs):
    out = tmp_path / "my.index"
    how = ("--keep", "0.5", "--method", "agglomerative", "--codec", "int4")
    said = call("index", docs, "--out", out, *how)
    assert "23 passages" in said
    assert "23 files written, 0 unchanged, 0 removed" in said
    assert "1 skipped:\n  image.png: binary" in said
    (docs / "note3.txt").unlink()
    (docs / "note4.txt").write_text("changed")
    report = json.loads(call("index", docs, "--out", out, *how, "--json"))
    assert (report["written"], report["unchanged"], report["removed"], report["passages"]) == (1, 21, 1, 22)
    assert report["skipped"] == {"image.png": "binary"}
    assert "was made with --codec int4; leave that out" in problem("index", docs, "--out", out, "--codec", "int8")
    again = json.loads(call("index", docs, "--out", out, "--json"))
    assert (again["written"], again["unchanged"]) == (0, 22)
    assert Library.open(out).recipe.keep == 0.5

    found = json.loads(call("search", out, "how do I read a FILE", "-k", "2", "--json"))
    assert found[0]["document"] == "read.md"
    assert len(found) == 2
    text = found[0]["text"]
    assert {text[a:b] for a, b in found[0]["highlights"]} <= set(text.replace(".", "").split())
    shown = call("search", out, "read a file", "-k", "1")
    assert "read.md" in shown
    assert "line by line" in shown
    assert len(json.loads(call("search", out, "cat", "--keep", "1", "--json"))) == 5


@pytest.mark.parametrize("sketch", ["mean", "none"])
def test_a_sketch_is_chosen_once(tmp_path, docs, sketch):
    out = tmp_path / "my.index"
    call("index", docs, "--out", out, "--sketch", sketch)
    with Library.open(out).index as index:
        assert index.stats["sketch"] == (None if sketch == "none" else sketch)
        assert (index.size["sketch_bytes"] > 0) == (sketch != "none")
    assert json.loads(call("search", out, "read a file", "--json"))[0]["document"] == "read.md"
    assert f"was made with --sketch {sketch};" in problem("index", docs, "--out", out, "--sketch", "pooled")
    assert "no sketch is called 'haiku'" in problem("index", docs, "--out", tmp_path / "x", "--sketch", "haiku")


def test_a_passage_tells_the_terminal_nothing(tmp_path, docs):
    out = tmp_path / "my.index"
    (docs / "evil.txt").write_text("evil \x1b[2J\x1b]0;title\x07 \x9b31m [bold]text[/bold]")
    call("index", docs, "--out", out)
    shown = call("search", out, "evil", "-k", "1")
    assert not {"\x1b", "\x07", "\x9b"} & set(shown)
    assert "[bold]text[/bold]" in shown
    assert json.loads(call("search", out, "evil", "-k", "1", "--json"))[0]["text"].startswith("evil \x1b[2J")


def test_only_passages_that_meet_conditions(tmp_path, docs):
    out = tmp_path / "my.index"
    call("index", docs, "--out", out)
    found = json.loads(call("search", out, "read a file", "--where", '{"suffix": [".html"]}', "--json"))
    assert [f["document"] for f in found] == ["cat.html"]
    assert "nothing found" in call("search", out, "read", "--where", '{"nowhere": 1}')
    assert "--where 'suffix=.md': no JSON" in problem("search", out, "read", "--where", "suffix=.md")
    assert "unknown operator 'like'" in problem("search", out, "read", "--where", '{"suffix": {"like": "m"}}')
    assert "where must be a dict" in problem("search", out, "read", "--where", "[]")


@pytest.mark.parametrize("shards", [(), ("--shards", "2")])
def test_what_is_damaged_is_named(tmp_path, docs, shards):
    out = tmp_path / "my.index"
    call("index", docs, "--out", out, *EXACT, "--sketch", "none", *shards)
    whole = json.loads(call("search", out, "read a file", "-k", "50", "--json"))
    file = sorted(out.rglob("*.safetensors"))[0]
    data = bytearray(file.read_bytes())
    head = 8 + int.from_bytes(data[:8], "little")
    place = head + json.loads(data[8:head])["token.codes"]["data_offsets"][0]
    data[place] ^= 1
    file.write_bytes(data)
    done = CliRunner().invoke(app, ["search", str(out), "read a file", "-k", "50", "--json"])
    assert "damaged, not searched: " in done.stderr
    assert f"{file.name}: token block 0" in done.stderr
    left = json.loads(done.stdout)
    assert len(left) < len(whole) == 23
    assert [f["id"] for f in left] == [f["id"] for f in whole if f["id"] in {g["id"] for g in left}]
    if not shards:
        (tmp_path / "q").write_text('{"query": "cat"}')
        assert file.name in CliRunner().invoke(app, ["bench-index", str(out), "--queries", str(tmp_path / "q")]).stderr


def test_words_are_highlighted_on_the_screen(tmp_path, docs, monkeypatch):
    from rich.console import Console

    from tokensieve.cli import retrieval

    call("index", docs, "--out", tmp_path / "my.index", *EXACT)
    screens = []
    monkeypatch.setattr(
        retrieval,
        "console",
        lambda: screens.append(Console(record=True, width=100, force_terminal=True)) or screens[-1],
    )
    call("search", tmp_path / "my.index", "file", "-k", "1")
    assert "\x1b[1;7mfile\x1b[0m" in screens[0].export_text(styles=True)


def test_what_cannot_be_done_is_said(tmp_path, docs):
    out = tmp_path / "my.index"
    (tmp_path / "empty").mkdir()
    assert "holds no files; nothing to index" in problem("index", tmp_path / "empty", "--out", out)
    assert not out.exists()
    assert "is no folder" in problem("index", tmp_path / "nowhere", "--out", out)
    (tmp_path / "empty" / "x").write_bytes(b"\0")
    for more in ((), ("--shards", "2")):
        assert "holds no text: x (binary)" in problem("index", tmp_path / "empty", "--out", out, *more)
        assert not out.exists()
        assert "holds other things" in problem("index", docs, "--out", docs, *more)
    assert sorted(p.name for p in docs.iterdir()) == sorted([*FILES, "image.png"])
    assert "there is no index" in problem("search", out, "x")
    assert "--keep" in problem("index", docs, "--out", out, "--keep", "1.5")
    assert "no vector format is called 'zip'" in problem("index", docs, "--out", out, "--codec", "zip")
    call("index", docs, "--out", out)
    assert "query is empty" in problem("search", out, " ")
    assert "give a --token-file" in problem("serve", out, "--host", "0.0.0.0")
    (tmp_path / "token").write_text("\n")
    assert "is empty" in problem("serve", out, "--token-file", tmp_path / "token")
    (tmp_path / "token").write_text("secret")
    both = ("--read-token-file", tmp_path / "token")
    assert "stands beside a --token-file" in problem("serve", out, *both)
    assert "holds another token" in problem("serve", out, "--token-file", tmp_path / "token", *both)
    with pytest.raises(IndexProblem, match="made for model"):
        Library.open(out, Words("other"))


def test_an_index_is_measured(tmp_path, docs):
    pytest.importorskip("ir_measures")
    out, file = tmp_path / "my.index", tmp_path / "q.jsonl"
    call("index", docs, "--out", out, *EXACT)
    asked = [
        ("read a file", ["read.md"]),
        ("a dog", "cat.html#0"),
        ("number 49", []),
        ("socket", ["note0.txt", "socket.py"]),
    ]
    file.write_text("\n".join(json.dumps({"query": q, "relevant": r}) for q, r in asked) + "\n\n")
    rows = json.loads(call("bench-index", out, "--queries", file, "--full", "--json"))
    assert [r["search"] for r in rows] == ["exact", "exact, all vectors, float32", "as tuned", "rrf"]
    assert rows[0]["agreement"] == 1.0
    assert rows[0]["vectors"] == rows[1]["vectors"]
    assert rows[1]["agreement"] == pytest.approx(1.0)
    assert all(r["median_ms"] > 0 for r in rows)
    # Quality against ranks found by hand.
    shelf = Library.open(out)
    ids = sorted(shelf.index.ids())
    places = []
    for query, relevant in asked:
        names = [relevant] if isinstance(relevant, str) else relevant
        if names:
            scores = maxsim(shelf.encoder.queries([query]).vectors, [shelf.index.get(i).vectors for i in ids])
            order = [ids[i] for i in scores.argsort(descending=True, stable=True).tolist()]
            places.append(min(i for i, d in enumerate(order, 1) if d in names or d.rpartition("#")[0] in names))
    want = {k: v.mean() for k, v in evaluate.measures(np.array(places)).items()}
    assert rows[0]["ndcg"] == pytest.approx(want["nDCG@10"])
    assert rows[0]["mrr"] == pytest.approx(want["MRR"])
    assert "recall@10 of exact" in call("bench-index", out, "--queries", file)
    file.write_text('{"query": "x"}')
    assert json.loads(call("bench-index", out, "--queries", file, "--json"))[0]["ndcg"] is None


def test_what_answers_must_be_in_the_index(tmp_path, docs):
    pytest.importorskip("ir_measures")
    out, queries = tmp_path / "my.index", tmp_path / "q"
    call("index", docs, "--out", out, *EXACT)
    queries.write_text(
        '{"query": "cat", "relevant": ["gone.md", "cat.html#0"]}\n{"query": "read", "relevant": "raed.md"}\n'
    )
    assert "relevant of 'read': 'raed.md' is no document" in problem("bench-index", out, "--queries", queries)
    queries.write_text('{"query": "cat", "relevant": ["gone.md", "cat.html#0"]}\n')
    assert json.loads(call("bench-index", out, "--queries", queries, "--json"))[0]["mrr"] == 1


@pytest.mark.parametrize("shards", [(), ("--shards", "2")])
def test_an_interrupted_command_goes_on(tmp_path, docs, monkeypatch, shards):
    monkeypatch.setattr(put, "COMMIT", 4)
    real, out = Words.documents, tmp_path / "my.index"

    def stopped(self, items, needs=()):
        if len(self.read) >= 8:
            raise KeyboardInterrupt
        return real(self, items, needs)

    monkeypatch.setattr(Words, "documents", stopped)
    done = CliRunner().invoke(app, ["index", str(docs), "--out", str(out), *EXACT, *shards])
    assert done.exit_code == 130
    assert ("interrupted; 0 of 2 shards" if shards else "interrupted; 8 passages") in done.stderr
    monkeypatch.setattr(Words, "documents", real)
    assert "23 passages" in call("index", docs, "--out", out, *EXACT, *shards)
    assert json.loads(call("search", out, "cat", "-k", "1", "--json"))[0]["document"] == "cat.html"


def test_fewer_vectors_show_in_the_measure(tmp_path, docs):
    out = tmp_path / "my.index"
    call("index", docs, "--out", out, "--codec", "float32", "--keep", "1")
    rows = measure(Library.open(out), read_queries_of(tmp_path, "note number 4"), full=True)
    assert rows[0].vectors == len(FILES)
    assert rows[1].vectors > 3 * len(FILES)
    assert rows[1].bytes == 4 * 16 * rows[1].vectors
    assert rows[1].agreement < 1


def read_queries_of(folder, *queries):
    (folder / "q.jsonl").write_text("\n".join(json.dumps({"query": q}) for q in queries))
    return read_queries(folder / "q.jsonl")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: no JSON"), ("[]", "line 2: query must be"), ('{"query": " "}', "line 2: query must be"),
        ('{"query": "x", "relevant": 5}', "line 2: relevant must be"), ('{"query": "x", "relevant": [5]}', "line 2: relevant"),
    ],
)  # fmt: skip
def test_a_wrong_line_of_queries_is_named(tmp_path, line, message):
    (tmp_path / "q").write_text('{"query": "x"}\n' + line)
    with pytest.raises(ValueError, match=message):
        read_queries(tmp_path / "q")
    (tmp_path / "q").write_text("\n")
    with pytest.raises(ValueError, match="holds no queries"):
        read_queries(tmp_path / "q")
