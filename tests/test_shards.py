"""A collection in shards: the same as one library of all its texts."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace

import pytest
import torch
from fastapi.testclient import TestClient
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests.shelf import Words, laid
from tokensieve.cli.main import app
from tokensieve.retrieval import Damaged, Hit, Incompatible, Locked
from tokensieve.retrieval.encoders import loading
from tokensieve.retrieval.encoders.reading import Size
from tokensieve.retrieval.encoders.reduce import Frequencies
from tokensieve.retrieval.errors import Gone
from tokensieve.retrieval.index import put
from tokensieve.retrieval.index.library import Library
from tokensieve.retrieval.index.recipe import Recipe
from tokensieve.retrieval.index.sync import mirror as mirror_whole
from tokensieve.retrieval.service import application
from tokensieve.retrieval.shards import SHARDS, Collection, Shards, build, merged, mirror

QUERIES = ["read a file", "note number 4", "word 7 7 here", "cat"]
TEXTS = {
    "read.md": "# Reading\n\nOpen a file and read it line by line.",
    "sub/socket.py": '"""Close a network socket."""',
    "cat.html": "<p>A cat &amp; a dog.</p>",
    "long.txt": "\n\n".join(f"{'word ' * 100}{i} {i * i} here" for i in range(12)),
    **{f"note{i}.txt": f"note {i} of nothing much, number {i % 7} and {i % 5}" for i in range(40)},
}


class Counted(Words):
    """With a vocabulary, for methods that count tokens."""

    class Reader:
        class reading:
            document_length = query_length = 10**6

        class Ids:
            def __init__(self, text):
                self.ids = [sum(map(ord, w)) % 97 for w in text.split()]

        unknown = None

        def read(self, texts, query):
            return [self.Ids(t) for t in texts]

        def sizes(self, texts, query):
            return [Size(len(t.split()), 0) for t in texts]

    reader = Reader()

    def documents(self, items, needs=()):
        encoded = super().documents(items, needs)
        ids = (encoded.vectors[:, 0] * 1000).long().abs() % 97
        return encoded.with_signals(ids=ids)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    build._encoder.cache_clear()
    monkeypatch.setattr(loading, "load_encoder", lambda source=None, **_: Counted())
    yield
    build._encoder.cache_clear()


@pytest.fixture
def docs(tmp_path):
    folder = laid(tmp_path / "docs", TEXTS)
    (folder / "image.png").write_bytes(b"\x89PNG\0")
    return folder


def both(tmp_path, docs, count=4, **recipe):
    """The same files in one library and in shards."""
    recipe = Recipe(**{"keep": 1.0, "codec": "float32", **recipe})
    whole = Library.create(tmp_path / "whole", recipe)
    report = mirror_whole(whole, docs)
    shards = Shards.create(tmp_path / "shards", recipe, count)
    assert mirror(shards, docs) == report
    return whole, shards


def equal(whole, shards, **how):
    with Collection.open(shards.folder) as collection:
        assert len(collection) == len(whole)
        for query in QUERIES:
            found, wanted = (rounded(c.search(query, 7, rerank=0, **how)) for c in (collection, whole))
            assert found == wanted


def rounded(found):
    """A matrix product of other shape may differ in its last digits."""
    rows = [
        replace(f, score=round(f.score, 4), matches=[replace(m, similarity=round(m.similarity, 4)) for m in f.matches])
        for f in found
    ]
    return sorted(rows, key=lambda f: (-f.score, f.id))


@pytest.mark.parametrize(
    "recipe",
    [{}, {"codec": "int4", "keep": 0.5}, {"codec": "residual2"}, {"method": "idf", "keep": 0.5}],
    ids=lambda r: "-".join(map(str, r.values())) or "plain",
)
def test_shards_find_what_one_library_finds(tmp_path, docs, recipe):
    whole, shards = both(tmp_path, docs, **recipe)
    equal(whole, shards)
    equal(whole, shards, where={"suffix": ".txt"})
    equal(whole, shards, keep=0.5)
    assert shards.size["documents"] == len(whole)
    assert shards.size["vectors"] == whole.index.size["vectors"]


def test_words_pages_and_documents_are_those_of_one_library(tmp_path):
    """BM25 counts over the whole collection; no two scores are alike here, so that ranks say all."""
    draw = random.Random(0)
    words = [f"{a}{b}" for a in "bdfgklmnprst" for b in ("ato", "eno", "iri", "uma")]
    texts = {
        f"t{i:02}.txt": "\n\n".join(" ".join(draw.choices(words, k=90)) + "." for _ in range(3)) for i in range(24)
    }
    whole, shards = both(tmp_path, laid(tmp_path / "docs", texts), 3)
    some = texts["t07.txt"].split()
    queries = [" ".join(some[20:25]), f'about "{some[40]} {some[41]}" or so', f"{words[0]} {words[9]} nothing"]
    with Collection.open(shards.folder) as collection:
        for how in (
            {"fuse": "rrf"}, {"fuse": 0.4}, {"fuse": 1.0}, {"fuse": "rrf", "offset": 4}, {"per_document": True},
            {"fuse": "rrf", "per_document": True, "offset": 1}, {"min_score": 2.0}, {"where": {"suffix": ".md"}},
        ):  # fmt: skip
            found, wanted = (c.search(queries, 6, rerank=0, **how) for c in (collection, whole))
            for mine, theirs in zip(found, wanted, strict=True):
                assert [f.id for f in mine] == [f.id for f in theirs]
                assert [f.score for f in mine] == pytest.approx([f.score for f in theirs], abs=1e-4)
                assert all(f.fused == (w.fused and pytest.approx(w.fused)) for f, w in zip(mine, theirs, strict=True))
        held = collection.search(queries[1], 6)
        assert held
        assert all(f"{some[40]} {some[41]}" in f.text for f in held)
        assert collection.notes("x", {"sufix": 1}) == ("no document has the field 'sufix'",)
        vectors = whole.encoder.queries(["word"]).vectors
        assert [h.id for h in collection.best(vectors, 3, rerank=0)] == [
            h.id for h in whole.index.search(vectors, 3, rerank=0)
        ]
        assert collection.get("t07.txt") == whole.get("t07.txt")
        assert collection.get("nobody") == []
        assert sorted(collection.ids()) == sorted(whole.ids())
        assert collection.metadata(["t07.txt#0", "none"]) == whole.metadata(["t07.txt#0", "none"])
        assert collection.size["vectors"] == whole.size["vectors"]


def test_an_open_collection_follows_what_is_committed(tmp_path, docs):
    _, shards = both(tmp_path, docs)
    with Collection.open(shards.folder) as collection:
        assert collection.search("cat", 1)[0].document == "cat.html"
        (docs / "cat.html").unlink()
        mirror(Shards.open(shards.folder), docs)
        assert collection.search("cat", 1)[0].document != "cat.html"
        # Made anew in its folder, of other texts in another number of shards.
        shutil.rmtree(shards.folder)
        with pytest.raises(Gone, match="is gone"):
            collection.search("cat")
        new = Shards.create(shards.folder, Recipe(keep=1.0, codec="float32"), 2)
        with pytest.raises(Incompatible, match="0 of the 2 shards"):
            collection.search("cat")
        mirror(new, laid(tmp_path / "new", {"new.txt": "A cat again."}))
        assert [f.document for f in collection.search("cat")] == ["new.txt"]


def test_a_collection_is_measured_and_served(tmp_path, docs):
    pytest.importorskip("ir_measures")
    _, shards = both(tmp_path, docs)
    (tmp_path / "q").write_text('{"query": "read a file", "relevant": "read.md"}')
    rows = json.loads(call("bench-index", shards.folder, "--queries", tmp_path / "q", "--full", "--json"))
    assert {r["search"]: r["ndcg"] for r in rows} == dict.fromkeys(
        ("exact", "exact, all vectors, float32", "as tuned", "rerank 50", "rrf"), 1.0
    )
    with Collection.open(shards.folder) as collection, TestClient(application(collection, hosts=None)) as client:
        asked = {"query": "read a file", "k": 2, "fuse": "rrf"}
        hits = client.post("/search", json=asked).json()["hits"]
        assert hits[0]["document"] == "read.md"
        assert client.get("/about").json()["passages"] == len(collection)
        assert client.get("/documents", params={"id": "cat.html"}).json()["passages"][0]["text"] == "A cat & a dog."
        for refused in (
            client.post("/documents", content="{}"),
            client.delete("/documents", params={"id": "cat.html"}),
        ):
            assert refused.status_code == 405
            assert "tokensieve index" in refused.json()["error"]["problem"]
            assert refused.headers["allow"] == "GET"


def test_a_text_stays_in_its_shard(tmp_path, docs):
    _, shards = both(tmp_path, docs)
    held = [set(Library.open(shards.at(n)).names()) for n in range(4)]
    assert set.union(*held) == set(TEXTS)
    assert sum(map(len, held)) == len(TEXTS)
    assert all(held)
    names = sorted(TEXTS)
    assert all(name in held[n] for name, n in zip(names, shards.of(names), strict=True))


def test_what_has_changed_is_taken_in(tmp_path, docs):
    whole, shards = both(tmp_path, docs)
    (docs / "read.md").write_text("Nothing but a file.")
    (docs / "new.txt").write_text("note number 4 again")
    for n in range(9):
        (docs / f"note{n}.txt").unlink()
    report = mirror_whole(whole, docs)
    again = Shards.open(shards.folder)
    assert mirror(again, docs) == report
    assert (report.written, report.removed) == (2, 9)
    equal(whole, again)


def test_a_build_that_was_stopped_goes_on(tmp_path, docs, monkeypatch):
    """Stopped between two commits of a shard, and between two shards."""
    monkeypatch.setattr(put, "COMMIT", 4)
    whole = Library.create(tmp_path / "whole", Recipe(keep=1.0, codec="float32"))
    report = mirror_whole(whole, docs)
    shards = Shards.create(tmp_path / "shards", Recipe(keep=1.0, codec="float32"), 3)
    plain, left = Library._commit, [0]

    def dying(self, rows, done):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        plain(self, rows, done)

    monkeypatch.setattr(Library, "_commit", dying)
    for stop in (3, 4, 9):
        left[0] = stop
        with pytest.raises(KeyboardInterrupt):
            mirror(Shards.open(shards.folder), docs)
        with pytest.raises(Incompatible, match=r"of the 3 shards .* are built"):
            Collection.open(shards.folder)
    again = Shards.open(shards.folder)
    assert len(again.built) > 0
    done = mirror(again, docs)
    assert done.unchanged > 0
    assert (done.written + done.unchanged, done.passages) == (report.written, report.passages)
    equal(whole, again)


def test_a_job_may_be_done_twice(tmp_path, docs):
    """By a worker that was taken for dead, say."""

    def twice(work, jobs):
        for job in jobs:
            work(job)
            yield work(job)

    whole = Library.create(tmp_path / "whole", Recipe(keep=1.0, codec="float32"))
    mirror_whole(whole, docs)
    shards = Shards.create(tmp_path / "shards", Recipe(keep=1.0, codec="float32"), 3)
    mirror(shards, docs, twice)
    equal(whole, shards)


def test_what_cannot_be_done_is_said(tmp_path, docs):
    _, shards = both(tmp_path, docs)
    with pytest.raises(Incompatible, match="is in shards"):
        Library.open(shards.folder)
    with pytest.raises(FileExistsError, match="there is an index"):
        Shards.create(tmp_path / "whole", Recipe(), 2)
    with pytest.raises(FileNotFoundError, match="no shards"):
        Shards.open(tmp_path / "whole")
    with pytest.raises(ValueError, match="at least 1"):
        Shards.create(tmp_path / "none", Recipe(), 0)
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match="holds no files"):
        mirror(shards, tmp_path / "other")
    (tmp_path / "other" / "x.bin").write_bytes(b"\0")
    with pytest.raises(ValueError, match="mirrors another folder"):
        mirror(shards, tmp_path / "other")
    (tmp_path / "other" / "read.md").write_bytes(b"\0")
    with pytest.raises(ValueError, match=r"holds no text: read.md \(binary\)"):
        mirror(shards, tmp_path / "other")
    with FileLock(shards.folder / "lock"), pytest.raises(Locked, match="another process"):
        mirror(shards, docs)
    with pytest.raises(Incompatible, match="made for model"):
        Collection.open(shards.folder, encoder=Words("other"))
    with Collection.open(shards.folder) as collection, pytest.raises(ValueError, match="query is empty"):
        collection.search(" ")
    manifest = shards.folder / SHARDS
    manifest.write_text(manifest.read_text().replace("float32", "float16"))
    with pytest.raises(Damaged, match="checksum"):
        Shards.open(shards.folder)


@given(st.lists(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 3)))), st.integers(1, 9))
def test_the_best_of_all_are_the_best_of_the_parts(parts, k):
    hits = [[Hit(f"{p}{name}{i}", score, {}) for i, (name, score) in enumerate(part)] for p, part in enumerate(parts)]
    order = sorted((h for part in hits for h in part), key=lambda h: (-h.score, h.id))
    firsts = [sorted(part, key=lambda h: (-h.score, h.id))[:k] for part in hits]
    assert merged(firsts, k) == order[:k]


def test_counts_of_parts_are_those_of_all():
    parts = [Frequencies(3, torch.tensor([1, 2])), Frequencies(), Frequencies(4, torch.tensor([0, 1, 5]))]
    total = sum(parts, Frequencies())
    assert (total.texts, total.counts.tolist()) == (7, [1, 3, 5])
    assert parts[0].counts.tolist() == [1, 2]


# ---- commands


def call(*args):
    done = CliRunner().invoke(app, [str(a) for a in args])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


def problem(*args):
    return str(CliRunner().invoke(app, [str(a) for a in args]).exception)


def test_shards_by_command(tmp_path, docs):
    out, how = tmp_path / "my.shards", ("--keep", "0.5", "--codec", "int4")
    said = call("index", docs, "--out", out, *how, "--shards", "3")
    assert "3 shards, 55 passages" in said
    assert "1 skipped:\n  image.png: binary" in said
    # Shards that are there need no number of them.
    report = json.loads(call("index", docs, "--out", out, *how, "--json"))
    assert (report["unchanged"], report["passages"], report["documents"]) == (len(TEXTS), 55, 55)
    assert "was made with --codec int4; leave that out" in problem("index", docs, "--out", out, "--codec", "int8")
    assert "has 3 shards" in problem("index", docs, "--out", out, *how, "--shards", "2")
    found = json.loads(call("search", out, "how do I read a FILE", "-k", "2", "--json"))
    assert found[0]["document"] == "read.md"
    assert "line by line" in call("search", out, "read a file", "-k", "1")
    whole = tmp_path / "my.index"
    call("index", docs, "--out", whole, *how)
    assert json.loads(call("search", whole, "how do I read a FILE", "-k", "2", "--json")) == found
    assert "is no collection in shards" in problem("index", docs, "--out", whole, *how, "--shards", "2")
    assert "is no collection in shards" in problem("search", whole, "x", "--ray", "local")
    (tmp_path / "empty").mkdir()
    assert "nothing to index" in problem("index", tmp_path / "empty", "--out", tmp_path / "x", "--shards", "2")
    assert not (tmp_path / "x").exists()
