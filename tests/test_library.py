"""Texts in an index: passages and their places, folders mirrored, what a search tells."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tests.shelf import Words
from tokensieve.retrieval import Damaged, Incompatible, Locked, maxsim
from tokensieve.retrieval.index import put
from tokensieve.retrieval.index.library import Library
from tokensieve.retrieval.index.recipe import Recipe
from tokensieve.retrieval.index.results import whole
from tokensieve.retrieval.index.sync import mirror
from tokensieve.retrieval.shards import Shards, build
from tokensieve.retrieval.shards import mirror as mirror_shards
from tokensieve.retrieval.sources.folder import Folder
from tokensieve.retrieval.sources.texts import Text
from tokensieve.retrieval.storage import files

POEM = {
    "read.md": "# Reading\n\nOpen a file and read it line by line.\n",
    "sub/socket.py": 'def close():\n    """Close a network socket."""\n',
    "page.html": "<html><head><title>Cats</title><style>p {}</style></head><body><p>A cat &amp; a "
    "<b>do</b>g sit.</p><script>var x;</script></body></html>",
}


@pytest.fixture
def docs(tmp_path):
    for name, text in POEM.items():
        write(tmp_path / "docs" / name, text)
    return tmp_path / "docs"


def write(file, text):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text) if isinstance(text, str) else file.write_bytes(text)


def made(tmp_path, **recipe):
    return Library.create(tmp_path / "my.index", Recipe(**{"keep": 1.0, "codec": "float32", **recipe}), Words())


def held(shelf):
    return {name: [p["text"] for p in shelf.get(name)] for name in shelf.names()}


# ---- folders


@pytest.mark.parametrize("keep", [0.2, 0.5, 1.0])
def test_what_stands_above_is_told_from_the_text(tmp_path, keep):
    """Headings are encoded with a passage, and neighbours are merged across the border too: that is shown in the text."""
    shelf = Library.create(tmp_path / "i", Recipe(None, "pool", keep, "float32"), Words())
    text = "# Rivers\n\n" + "\n\n".join(f"{'Rocks are grey and do not flow anywhere. ' * 15}{i}" for i in range(4))
    shelf.put([Text("a.md", text, reader="markdown")])
    under = [p["id"] for p in shelf.get("a.md") if p["context"] == "Rivers"]
    assert len(under) > 1
    for note in shelf.index.metadata(under):
        spans = list(zip(note["spans"][::2], note["spans"][1::2], strict=True))
        assert all(0 <= a < b or a < b < 0 or a == b == -1 for a, b in spans)
    if keep == 1.0:
        for result in shelf.search("rivers", k=9):
            (match,) = [m for m in result.matches if m.query]
            assert match.context == ((0, 6) if result.id in under else None)


def test_a_long_text_is_read_in_parts():
    source, asked = "\n\n".join(f"{'word ' * 100}{i}" for i in range(1200)), []

    def sizes(texts):
        asked.append(len(texts))
        return [len(t) for t in texts]

    pieces = Text("a", source).pieces(sizes, 300)
    assert max(asked) <= 1024 < len(pieces)
    assert max(len(p.text) for p in pieces) <= 300
    assert [source[slice(*p.span)] for p in pieces] == [p.text for p in pieces]
    assert "".join("".join(p.text for p in pieces).split()) == "".join(source.split())


def test_a_folder_is_mirrored(tmp_path, docs):
    shelf = made(tmp_path)
    first = mirror(shelf, docs)
    assert (first.files, first.written, first.unchanged, first.removed, first.passages) == (3, 3, 0, 0, 3)
    assert set(held(shelf)) == set(POEM)
    for name in ("read.md", "sub/socket.py"):
        for p in shelf.get(name):
            assert POEM[name][slice(*p["span"])] == p["text"]
    shelf.encoder.read.clear()
    again = mirror(shelf, docs)
    assert (again.written, again.unchanged, shelf.encoder.read) == (0, 3, [])
    write(docs / "read.md", "Nothing here but words.")
    write(docs / "new.txt", "Something new.")
    (docs / "page.html").unlink()
    last = mirror(shelf, docs)
    assert (last.written, last.unchanged, last.removed, last.passages) == (2, 1, 1, 3)
    assert shelf.encoder.read == ["Something new.", "Nothing here but words."]
    assert held(shelf)["read.md"] == ["Nothing here but words."]


def test_texts_that_came_otherwise_stay(tmp_path, docs):
    shelf = made(tmp_path)
    shelf.put([Text("note", "a note of mine")])
    mirror(shelf, docs)
    (docs / "read.md").unlink()
    assert mirror(shelf, docs).removed == 1
    assert set(held(shelf)) == {"note", "page.html", "sub/socket.py"}
    write(tmp_path / "other" / "x.txt", "x")
    with pytest.raises(ValueError, match="mirrors another folder"):
        mirror(shelf, tmp_path / "other")


def test_shorter_longer_and_empty_again(tmp_path):
    """A text of many passages becomes one of few, of many, of none."""
    long, short = "\n\n".join(f"{'word ' * 100}{i}" for i in range(200)), "few words"
    shelf = made(tmp_path)
    for source in (long, short, long[: len(long) // 2], long, "", short):
        shelf.put([Text("a", source), Text("b", "stays")])
        assert "".join("".join(held(shelf).get("a", [])).split()) == "".join(source.split())
        assert held(shelf)["b"] == ["stays"]
    assert shelf.put([Text("a", short)]) == 0
    assert shelf.put([Text("a", short), Text("a", "other"), Text("a", short)]) == 2
    assert held(shelf)["a"] == [short]
    assert shelf.remove(["a", "nothing"]) == 1


@pytest.mark.parametrize(
    ("text", "says"), [((5, "x"), "name of a text is a string"), (("", "x"), "name of a text is empty"),
                       (("a", None), "source of a text"), (("a", "caf\udce9"), "source of a text"), (("\udce9", "x"), "name")],
)  # fmt: skip
def test_what_is_no_text_is_refused(text, says):
    with pytest.raises(ValueError, match=says):
        Text(*text)


def test_an_interrupted_build_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(put, "COMMIT", 4)
    texts = [Text(f"t{i}", "\n\n".join(f"{'word ' * 100}{i} {j}" for j in range(3))) for i in range(5)]
    shelf, calls = made(tmp_path), []

    def stop(passages):
        calls.append(passages)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shelf.put(texts, stop)
    assert 0 < len(shelf) < 15
    shelf.encoder.read.clear()
    assert shelf.put(texts) == 3
    assert len(shelf.encoder.read) == 9
    assert held(shelf) == {t.name: [p.text for p in t.pieces()] for t in texts}


UNSURE = "not UTF-8 (byte 2), and no other encoding is certain; save it as UTF-8"


def test_what_is_no_text_is_named(tmp_path, docs):
    write(docs / "image.png", b"\x89PNG\0\0")
    write(docs / "latin.txt", "naïve".encode("latin-1"))
    write(docs / ".hidden", "x")
    write(docs / "empty.txt", " \n")
    write(docs / "script.html", "<script>run()</script>")
    write(docs / "two\nlines.txt", "x")
    write(docs / os.fsdecode(b"caf\xe9.txt"), "x")
    (docs / "again").symlink_to(docs)
    os.mkfifo(docs / "pipe")
    shelf = made(docs)
    steps = []
    report = mirror(shelf, docs, lambda files, of, passages: steps.append((files, of)))
    assert report.skipped == {
        "image.png": "binary", "latin.txt": UNSURE, "empty.txt": "no text in it", "pipe": "not a regular file",
        "script.html": "no text in it", r"two\nlines.txt": "its name cannot be shown; rename it",
        r"caf\udce9.txt": "its name cannot be shown; rename it", "again/": "a link to a folder",
    }  # fmt: skip
    assert report.files == len(report.skipped) - 1 + 3
    assert steps[-1] == (report.files, report.files)
    assert set(held(shelf)) == set(POEM)
    assert mirror(shelf, docs).written == 0
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no files; nothing to index"):
        mirror(shelf, tmp_path / "empty")
    with pytest.raises(ValueError, match="is no folder"):
        mirror(shelf, tmp_path / "nowhere")
    write(tmp_path / "binary" / "x", b"\0")
    with pytest.raises(ValueError, match=r"holds no text: x \(binary\)"):
        mirror(Library.create(tmp_path / "second", Recipe(), Words()), tmp_path / "binary")


def test_names_of_every_script_are_taken(tmp_path):
    names = ["文件.md", "имя с пробелом.md", "می\u200cروم.md", "👨\u200d👩\u200d👧.md", "at\u202f9.md", "a#1", "a"]
    for name in names:
        write(tmp_path / "docs" / name, f"text of {name}")
    shelf = made(tmp_path)
    assert mirror(shelf, tmp_path / "docs").skipped == {}
    assert held(shelf) == {name: [f"text of {name}"] for name in names}
    (tmp_path / "docs" / "a").unlink()
    assert mirror(shelf, tmp_path / "docs").removed == 1
    assert "a#1" in held(shelf)


def test_a_second_writer_is_told_before_it_encodes(tmp_path, docs):
    shelf = made(tmp_path)
    mirror(shelf, docs)
    write(docs / "more.md", "more")
    second = Library.open(tmp_path / "my.index", Words())
    with pytest.raises(Locked, match="close that one first"):
        mirror(second, docs)
    assert second.encoder.read == []


@pytest.mark.parametrize("shards", [None, 2])
def test_what_cannot_be_read_now_is_kept(tmp_path, docs, monkeypatch, shards):
    def bring():
        return mirror(shelf, docs) if shards is None else mirror_shards(shelf, docs)

    def names():
        parts = [shelf] if shards is None else [Library.open(shelf.at(n), Words()) for n in range(shards)]
        return {name for part in parts for name in part.names()}

    if shards is None:
        shelf = made(tmp_path)
    else:
        monkeypatch.setattr(build, "_encoder", lambda source: Words())
        shelf = Shards.create(tmp_path / "my.shards", Recipe(keep=1.0, codec="float32"), shards)
    write(docs / "gone.md", "soon gone")
    bring()
    (docs / "gone.md").unlink()
    scan, read = os.scandir, Path.read_bytes

    def closed(path):
        if Path(path).name == "sub":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    def broken(path):
        if path.name == "read.md":
            raise OSError(5, "Input/output error", str(path))
        return read(path)

    monkeypatch.setattr(os, "scandir", closed)
    monkeypatch.setattr(Path, "read_bytes", broken)
    report = bring()
    assert report.skipped == {"sub/": "Permission denied", "read.md": "Input/output error"}
    assert report.removed == 1
    assert names() == set(POEM)


def test_the_index_in_the_folder_is_no_document(docs):
    assert not any("my.index" in f.parts for f in Folder(docs, docs / "my.index").files())


# ---- searching


def test_a_hit_says_what_was_matched(tmp_path, docs):
    shelf = made(tmp_path)
    mirror(shelf, docs)
    query = "how do I read the FILE"
    hits = shelf.search(query, k=2)
    assert hits[0].document == "read.md"
    assert hits[0].metadata == {"kind": "file", "suffix": ".md"}
    by_token = {
        query[slice(*m.query)]: hits[0].text[slice(*m.passage)] for m in hits[0].matches if m.query and m.passage
    }
    assert by_token["FILE"] == "file"
    assert by_token["read"] in ("read", "Reading")
    assert [hits[0].text[a:b] for a, b in hits[0].highlights] == ["file", "read"]
    assert hits[0].score == pytest.approx(sum(m.similarity for m in hits[0].matches), abs=1e-4)
    assert hits[0].matches[0].query is None
    assert shelf.search("cat", k=3, where={"suffix": ".html"})[0].document == "page.html"
    assert shelf.search("cat", where={"suffix": ".pdf"}) == []
    for wrong in (None, 5, [5], "caf\udce9"):
        with pytest.raises(ValueError, match="a query is a string"):
            shelf.search(wrong)
    with pytest.raises(ValueError, match="query is empty"):
        shelf.search("  ")


def test_fewer_vectors_are_shown(tmp_path, docs):
    shelf = made(tmp_path)
    mirror(shelf, docs)
    full, whole_ = shelf.search("read a file", k=3), shelf.search("read a file", k=3, keep=1.0)
    assert [(h.id, h.matches) for h in full] == [(h.id, h.matches) for h in whole_]
    one = shelf.search("read a file", k=3, keep=1)
    assert [h.vectors for h in one] == [1, 1, 1]
    half, stored = ({h.id: h.vectors for h in hits} for hits in (shelf.search("read a file", k=3, keep=0.5), full))
    assert half == {i: max(1, int(n * 0.5 + 0.5)) for i, n in stored.items()}
    with pytest.raises(ValueError, match="keep="):
        shelf.search("read", keep=0.0)


def test_stored_vectors_are_reduced(tmp_path, docs):
    shelf = made(tmp_path, keep=0.5, method="kmeans")
    mirror(shelf, docs)
    for name in POEM:
        text = shelf.get(name)[0]["text"]
        whole_ = shelf.encoder.queries([text]).vectors
        assert len(shelf.index.get(f"{name}#0").vectors) == max(1, int(len(whole_) * 0.5 + 0.5))
    hit = shelf.search("file", k=1)[0]
    assert hit.score == pytest.approx(
        float(maxsim(shelf.encoder.queries(["file"]).vectors, [shelf.index.get(hit.id).vectors])), abs=1e-5
    )


def test_words_are_highlighted_whole():
    assert whole("a reading b", (2, 6)) == (2, 9)
    assert whole("a reading b", (6, 9)) == (2, 9)
    assert whole("(a)", (0, 1)) == (0, 1)
    assert whole("ab", (0, 2)) == (0, 2)
    assert whole("как читать_x", (5, 6)) == (4, 10)
    assert whole("如何打开文件", (2, 4)) == (2, 4)
    assert whole("用Python读", (2, 3)) == (1, 7)


# ---- opening


def test_an_encoders_folder_is_found_from_everywhere(tmp_path, monkeypatch):
    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert Recipe(encoder="models/mine").encoder == str(tmp_path / "models" / "mine")
    assert Recipe(encoder="owner/name").encoder == "owner/name"
    assert Recipe().encoder is None


def test_a_library_opens_with_its_encoder_only(tmp_path, docs):
    shelf = made(tmp_path, keep=0.5)
    mirror(shelf, docs)
    shelf.close()
    again = Library.open(tmp_path / "my.index", Words())
    assert again.recipe == Recipe(keep=0.5, codec="float32")
    assert again.search("file")[0].document == "read.md"
    with pytest.raises(Incompatible, match="made for model"):
        Library.open(tmp_path / "my.index", Words("others"))
    with pytest.raises(FileExistsError, match="already"):
        made(tmp_path)
    with pytest.raises(FileNotFoundError, match="tokensieve index DOCS"):
        Library.open(tmp_path / "nothing", Words())
    with pytest.raises(ValueError, match="fastv"):
        Recipe(method="fastv")
    with pytest.raises(ValueError, match="counts tokens, and this encoder names none"):
        mirror(Library.create(tmp_path / "idf", Recipe(method="idf", keep=0.5), Words()), docs)
    with pytest.raises(ValueError, match="'span' is a field of the library's own"):
        again.put([Text("a", "b", {"span": 1})])


def test_what_another_process_commits_is_seen(tmp_path):
    shelf = made(tmp_path)
    other = Library.open(tmp_path / "my.index", Words())
    shelf.put([Text("a", "one file")])
    assert other.search("file")[0].document == "a"
    assert other.get("a")[0]["text"] == "one file"


def test_passages_of_damaged_texts_are_passed_over(tmp_path):
    shelf = made(tmp_path)
    shelf.put([Text("a", "one file")])
    shelf.close()
    (file,) = (tmp_path / "my.index").glob("*.safetensors")
    data = file.read_bytes()
    file.write_bytes(data.replace(b"one file", b"two file"))
    again = Library.open(tmp_path / "my.index", Words())
    assert again.search("file") == []
    assert again.get("a") == []
    assert any("meta is damaged" in d for d in again.index.damaged)
    again.put([Text("a", "one file")])
    assert again.search("file")[0].text == "one file"


def test_a_library_of_another_release_is_refused(tmp_path):
    folder = made(tmp_path).index.folder
    recipe, manifest = files.read_json(folder / "library.json"), files.read_json(folder / "manifest.json")
    files.write_json(folder / "library.json", recipe | {"flavour": "sweet"})
    with pytest.raises(Incompatible, match=r"another release \(recipe: flavour\)"):
        Library.open(folder, Words())
    files.write_json(folder / "manifest.json", manifest | {"version": 99})
    with pytest.raises(Incompatible, match="version 99"):
        Library.open(folder, Words())
    (folder / "library.json").write_text("{}")
    files.write_json(folder / "manifest.json", manifest)
    with pytest.raises(Damaged, match=r"library\.json is damaged"):
        Library.open(folder, Words())


@pytest.mark.slow
def test_with_the_real_encoder(tmp_path, docs):
    """Counts of tokens, long passages and a search by meaning with MiniLM."""
    write(docs / "han.txt", "文件按行读取。" * 100)
    shelf = Library.create(tmp_path / "my.index", Recipe(method="idf", keep=0.7, codec="int4"))
    mirror(shelf, docs)
    assert shelf.search("how do I shut down a connection", k=1)[0].document == "sub/socket.py"
    assert "".join(p["text"] for p in shelf.get("han.txt")) == "文件按行读取。" * 100
    assert all(
        n < 254
        for n in (len(t.ids) for t in shelf.encoder.reader.read([p["text"] for p in shelf.get("han.txt")], False))
    )
    # Other scripts, signs, and characters of which no token is left.
    for query in ("文件按行读取", "Γειά σου κόσμε", "🎉", "\u200b", "?"):
        assert [f.score == f.score for f in shelf.search(query, k=3)] == [True] * 3
    assert shelf.search("文件按行读取", k=1)[0].document == "han.txt"
    assert torch.equal(
        shelf.index.get("read.md#0").vectors, Library.open(tmp_path / "my.index").index.get("read.md#0").vectors
    )
