"""Indexes of real folders: never wrong, never gone. Rebuilt, repaired, compacted, moved, from an earlier release,
from a stranger."""

from __future__ import annotations

import json
import os
import shutil
import stat
import threading
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from tests.shelf import Words, laid
from tokensieve.cli.main import app
from tokensieve.retrieval import Damaged, Incompatible, Index, IndexProblem, Locked
from tokensieve.retrieval.encoders import loading
from tokensieve.retrieval.encoders.reading import Size
from tokensieve.retrieval.errors import Forbidden, Gone
from tokensieve.retrieval.index import manifest as manifests
from tokensieve.retrieval.index.library import Library
from tokensieve.retrieval.index.recipe import Recipe
from tokensieve.retrieval.index.sync import mirror
from tokensieve.retrieval.sources.texts import Text
from tokensieve.retrieval.storage import files

OLD = Path(__file__).parent / "index_1"
"""Written by the first release: two files, one of three deleted again, and two texts of a caller's own."""
DIM = 8


@pytest.fixture
def docs(tmp_path):
    return laid(tmp_path / "docs", {f"{i}.txt": f"Text {i} is about subject {i * i}." for i in range(12)})


def made(folder, **recipe):
    return Library.create(folder, Recipe(**{"keep": 1.0, "codec": "float32", **recipe}), Words())


def filled(folder, names, model=None, count=2):
    with Index.create(folder, DIM, "float32", model=model) as index:
        index.add([torch.randn(count, DIM) for _ in names], list(names))
    return index


def flip(file, tensor, share=0.0):
    data = bytearray(file.read_bytes())
    head = 8 + int.from_bytes(data[:8], "little")
    a, b = json.loads(data[8:head])[tensor]["data_offsets"]
    data[head + a + int(share * (b - a - 1))] ^= 255
    file.write_bytes(data)


def rewritten(folder, change, name="manifest.json"):
    """A file as a stranger may write it, with the checksum that fits."""
    held = files.read_json(folder / name)
    change(held)
    files.write_json(folder / name, held)


# ---- identity


@pytest.mark.parametrize("count", [2, 5])
def test_a_reader_follows_an_index_that_was_made_anew(tmp_path, count):
    """In the same folder, with files of the same names."""
    at = tmp_path / "i"
    filled(at, ["old0", "old1", "old2"])
    reader = Index.open(at)
    before = reader.identity
    reader.search(torch.randn(2, DIM))
    shutil.rmtree(at)
    with pytest.raises(Gone, match="is gone"):
        reader.refresh()
    filled(at, [f"new{i}" for i in range(count)])
    reader.refresh()
    assert sorted(reader.ids()) == [f"new{i}" for i in range(count)]
    assert {h.id for h in reader.search(torch.randn(2, DIM))} == set(reader.ids())
    assert reader.identity != before
    assert reader.verify() == []


def test_one_that_was_made_anew_for_another_model_is_refused(tmp_path):
    at = tmp_path / "i"
    filled(at, "ab", model="a")
    reader = Index.open(at, model="a")
    shutil.rmtree(at)
    filled(at, "ab", model="b")
    for _ in range(2):
        with pytest.raises(Incompatible, match="made anew for model 'b'"):
            reader.refresh()


def test_a_service_follows_a_library_that_was_made_anew(tmp_path):
    at = tmp_path / "i"
    shelf = made(at)
    shelf.put([Text("old", "a red fox")])
    shelf.close()
    served = Library.open(at, Words())
    assert served.search("fox")[0].document == "old"
    shutil.rmtree(at)
    with pytest.raises(Gone):
        served.search("fox")
    again = made(at, keep=0.5)
    again.put([Text("new", "a blue whale")])
    again.close()
    assert [h.document for h in served.search("fox")] == ["new"]
    assert served.recipe.keep == 0.5
    shutil.rmtree(at)
    other = Library.create(at, Recipe(keep=1.0, codec="float32"), Words("other"))
    other.put([Text("new", "a blue whale")])
    with pytest.raises(Incompatible, match="made anew for model"):
        served.search("fox")


def test_a_writer_does_not_write_into_another_index(tmp_path):
    at = tmp_path / "i"
    writer = filled(at, "ab")
    writer.begin()
    shutil.rmtree(at)
    with pytest.raises((Gone, OSError)):
        writer.add([torch.randn(1, DIM)], ["c"])
    filled(at, "xyz")
    with pytest.raises((Gone, OSError)):
        writer.add([torch.randn(1, DIM)], ["c"])
    assert sorted(Index.open(at).ids()) == ["x", "y", "z"]


def test_commits_are_seen_whatever_the_clock_says(tmp_path):
    at = tmp_path / "i"
    shelf = made(at)
    shelf.put([Text("a", "one")])
    reader = Library.open(at, Words())
    assert len(reader.search("one")) == 1
    about = (at / "manifest.json").stat()
    shelf.put([Text("b", "one two")])
    os.utime(at / "manifest.json", ns=(about.st_atime_ns, about.st_mtime_ns))
    assert len(reader.search("one")) == 2


# ---- making one


def test_two_that_make_one_index_do_not_mix(tmp_path, monkeypatch):
    """The second comes between the recipe and the manifest of the first."""
    at, seen = tmp_path / "i", []
    real = manifests.start

    def slow(*args, **made_):
        if not seen:
            seen.append(True)
            with pytest.raises(Locked):
                Library.create(at, Recipe(keep=1.0, codec="int4"), Words())
        real(*args, **made_)

    monkeypatch.setattr("tokensieve.retrieval.index.index.start", slow)
    made(at, codec="int8").close()
    assert seen
    assert [files.read_json(at / f"{n}.json")["codec"] for n in ("manifest", "library")] == ["int8", "int8"]
    with pytest.raises(FileExistsError, match="already"):
        made(at)


def test_many_that_make_one_index_leave_one(tmp_path):
    at, done = tmp_path / "i", []

    def make(codec):
        try:
            done.append(Library.create(at, Recipe(keep=1.0, codec=codec), Words()).recipe.codec)
        except (Locked, FileExistsError):
            done.append(None)

    threads = [threading.Thread(target=make, args=(c,)) for c in ("int8", "int4") * 4]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    (codec,) = [c for c in done if c]
    assert [files.read_json(at / f"{n}.json")["codec"] for n in ("manifest", "library")] == [codec, codec]


@pytest.mark.skipif(os.name == "nt", reason="modes")
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_have_the_modes_that_the_umask_gives(tmp_path, umask):
    before = os.umask(umask)
    try:
        index = filled(tmp_path / "i", "abc")
        index.delete(["a"])
        index.close()
    finally:
        os.umask(before)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "i").iterdir() if p.name != "lock"}
    assert len(modes) == 3
    assert set(modes.values()) == {0o666 & ~umask}


def test_what_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    index = filled(tmp_path / "i", "abc")
    real = open

    def closed(path, *args, **how):
        if str(path).endswith(".safetensors"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **how)

    monkeypatch.setattr("builtins.open", closed)
    with pytest.raises(Forbidden, match=r"000001\.safetensors may not be read by this account"):
        Index.open(index.folder)


# ---- repair


def test_a_damaged_block_is_encoded_again(tmp_path, docs, monkeypatch):
    monkeypatch.setattr("tokensieve.retrieval.index.rows.BLOCK", 24)
    at = tmp_path / "i"
    shelf = made(at)
    mirror(shelf, docs)
    shelf.close()
    (file,) = at.glob("*.safetensors")
    flip(file, "token.codes")
    shelf = Library.open(at, Words())
    found = shelf.search("subject", k=50)
    assert 0 < len(found) < 12
    assert shelf.index.damaged
    report = mirror(shelf, docs)
    assert 0 < report.written == 12 - len(found)
    assert len(shelf.encoder.read) == report.written
    assert len(shelf) == report.passages == 12
    assert [file.name in part and "token block 0" in part for part in report.repaired] == [True]
    assert shelf.index.verify() == []
    assert len(shelf.search("subject", k=50)) == 12
    assert mirror(shelf, docs).repaired == []


@pytest.mark.parametrize("how", ["missing", "id", "meta", "key", "token:offsets"])
def test_a_lost_segment_is_encoded_again_and_counted_once(tmp_path, docs, how):
    at = tmp_path / "i"
    shelf = made(at)
    mirror(shelf, docs)
    shelf.close()
    (file,) = at.glob("*.safetensors")
    file.unlink() if how == "missing" else flip(file, how, 0.5)
    shelf = Library.open(at, Words())
    assert shelf.search("subject", k=50) == []
    report = mirror(shelf, docs)
    assert (report.written, report.passages, len(shelf)) == (12, 12, 12)
    assert report.repaired
    assert shelf.index.verify() == shelf.index.damaged == []
    assert not file.exists()
    assert len({h.document for h in shelf.search("subject", k=50)}) == 12


def test_what_no_file_can_replace_stays_named(tmp_path, docs):
    """Until it is let go of in so many words."""
    at = tmp_path / "i"
    shelf = made(at)
    shelf.put([Text("mine", "a note of mine")])
    mirror(shelf, docs)
    shelf.close()
    for file in at.glob("*.safetensors"):
        file.unlink()
    shelf = Library.open(at, Words())
    assert len(mirror(shelf, docs).repaired) == 1  # the segment of files alone
    (left,) = shelf.index.damaged
    assert "(1 documents)" in left
    assert len(shelf) == 12
    shelf.index.compact(forget=True)
    assert shelf.index.damaged == []
    assert len(shelf) == 12


def test_files_that_cannot_be_read_now_let_nothing_go(tmp_path, docs, monkeypatch):
    at = tmp_path / "i"
    shelf = made(at)
    mirror(shelf, docs)
    shelf.close()
    next(iter(at.glob("*.safetensors"))).unlink()
    real = Path.read_bytes

    def broken(path):
        if path.name == "3.txt":
            raise OSError(5, "Input/output error")
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", broken)
    shelf = Library.open(at, Words())
    assert mirror(shelf, docs).repaired == []
    assert shelf.index.damaged
    monkeypatch.undo()
    assert mirror(shelf, docs).repaired
    assert shelf.index.damaged == []


def test_a_text_that_is_put_again_is_healed(tmp_path):
    at = tmp_path / "i"
    shelf = made(at)
    shelf.put([Text("a", "a fox"), Text("b", "a whale")])
    shelf.close()
    (file,) = at.glob("*.safetensors")
    flip(file, "token.codes")
    shelf = Library.open(at, Words())
    assert shelf.put([Text("a", "a fox"), Text("b", "a whale")]) == 2
    assert shelf.put([Text("a", "a fox"), Text("b", "a whale")]) == 0
    assert shelf.index.verify() == []


# ---- what was deleted


def held_by(folder, words):
    return [p.name for p in folder.iterdir() if words in p.read_bytes()]


def test_a_segment_is_rewritten_when_half_of_it_is_dead(tmp_path):
    index = Index.create(tmp_path / "i", DIM, "float32")
    index.add(
        [torch.randn(400, DIM) for _ in range(100)],
        [str(i) for i in range(100)],
        [{"n": f"secret{i}."} for i in range(100)],
    )
    assert index.size["vectors"] > (1 << 17) // 8  # too large to be merged for its size
    index.delete([str(i) for i in range(40)])
    assert held_by(index.folder, b"secret7.")
    index.delete([str(i) for i in range(40, 51)])
    assert not held_by(index.folder, b"secret7.")
    assert index.stats["deleted"] == 0
    assert len(index) == 49
    assert index.verify() == []


def test_compaction_takes_deleted_text_off_the_disk(tmp_path, docs):
    at = tmp_path / "i"
    (docs / "secret.txt").write_text("The password is XYZZY.")
    shelf = made(at)
    mirror(shelf, docs)
    (docs / "secret.txt").unlink()
    mirror(shelf, docs)
    shelf.close()
    assert held_by(at, b"XYZZY")
    done = CliRunner().invoke(app, ["compact", str(at)])
    assert done.exit_code == 0, done.output
    assert not held_by(at, b"XYZZY")
    assert len(Library.open(at, Words()).search("subject", k=50)) == 12


# ---- marks


def test_metadata_of_a_caller_mean_nothing_to_the_library(tmp_path, docs):
    shelf = made(tmp_path / "i")
    mirror(shelf, docs)
    shelf.put(
        [
            Text("attachment-7", "An uploaded report.", {"kind": "file"}),
            Text("n.txt", "x", {"kind": "file", "suffix": ".txt"}),
        ]
    )
    assert mirror(shelf, docs).removed == 0
    assert {"attachment-7", "n.txt"} <= shelf.names()
    assert shelf.search("uploaded", k=1)[0].metadata == {"kind": "file"}
    for name in ("text", "$file", "$or"):
        with pytest.raises(ValueError, match="is a field of the library's own"):
            shelf.put([Text("a", "b", {name: True})])
    with pytest.raises(ValueError, match="metadata of document 'bad' must be a dict of JSON values"):
        shelf.put([Text("bad", "b", {"when": object()})])


def test_a_text_without_a_word_is_not_counted(tmp_path):
    shelf = made(tmp_path / "i")
    assert [shelf.put([Text("e", " ")]), shelf.put([Text("e", "word")]), shelf.put([Text("e", "")])] == [0, 1, 0]
    assert shelf.names() == set()


def test_a_file_takes_the_place_of_a_text_of_its_name(tmp_path, docs):
    """And from then on it goes when the file goes."""
    shelf = made(tmp_path / "i")
    shelf.put([Text("0.txt", (docs / "0.txt").read_text(), {"kind": "file", "suffix": ".txt"})])
    mirror(shelf, docs)
    (docs / "0.txt").unlink()
    assert mirror(shelf, docs).removed == 1


# ---- the encoder


def test_an_encoder_is_known_by_its_digest(tmp_path, docs, monkeypatch):
    monkeypatch.setattr(loading, "load_encoder", lambda source=None, **_: Words())
    out = tmp_path / "i"
    (tmp_path / "enc").mkdir()
    assert (
        CliRunner().invoke(app, ["index", str(docs), "--out", str(out), "--encoder", str(tmp_path / "enc")]).exit_code
        == 0
    )
    (tmp_path / "enc").rename(tmp_path / "enc2")

    def load(source=None, **_):
        if source is not None and not Path(source).is_dir():
            raise ValueError(f"{source} is no folder")
        found = Words()
        found.identity = type(found.identity)("enc2", found.identity.digest, found.identity.dim)
        return found

    monkeypatch.setattr(loading, "load_encoder", load)
    missing = CliRunner().invoke(app, ["search", str(out), "subject"])
    assert isinstance(missing.exception, IndexProblem)
    assert "where it has moved, say so (--encoder" in str(missing.exception)
    moved = ["--encoder", str(tmp_path / "enc2")]
    assert CliRunner().invoke(app, ["search", str(out), "subject", *moved]).exit_code == 0
    assert CliRunner().invoke(app, ["index", str(docs), "--out", str(out), *moved]).exit_code == 0
    assert CliRunner().invoke(app, ["search", str(out), "subject"]).exit_code == 0  # it remembers
    with pytest.raises(Incompatible, match="was made for model"):
        Library.open(out, Words("another"))


def test_nothing_is_loaded_where_nothing_is_encoded(tmp_path, docs, monkeypatch):
    out = tmp_path / "i"
    shelf = made(out)
    mirror(shelf, docs)
    shelf.close()

    def refuse(*_, **__):
        raise AssertionError

    monkeypatch.setattr(loading, "load_encoder", refuse)
    for command in (
        ["index", docs, "--out", out],
        ["info", out],
        ["verify", out],
        ["compact", out],
        ["delete", out, "3.txt"],
    ):
        done = CliRunner().invoke(app, [str(a) for a in command])
        assert done.exit_code == 0, (command, done.output, done.exception)


class Read(Words):
    """With a reader that reads eight words and knows none of Chinese."""

    class reader:
        unknown = 1

        class reading:
            query_length, document_length = 8, 100

        @staticmethod
        def sizes(texts, query):
            return [Size(len(t.split()), sum(not w.isascii() for w in t.split())) for t in texts]

        @staticmethod
        def read(texts, query):
            return [type("Read", (), {"spans": [(0, 5), (6, 30)], "ids": [0]}) for _ in texts]

    def documents(self, items, needs=()):
        encoded = super().documents(items, needs)
        words = [0 if c.isascii() else 1 for text in items for c in ["", *text.split()]]
        return encoded.with_signals(ids=torch.tensor((words + [0] * 999)[: len(encoded.vectors)]))


def test_a_query_that_loses_its_end_says_so(tmp_path):
    shelf = Library.create(tmp_path / "i", Recipe(keep=1.0, codec="float32"), Read())
    shelf.put([Text("a", "some words")])
    assert shelf.search("some words")[0].notes == ()
    (note,) = shelf.search("words " * 20)[0].notes
    assert note == "the query was cut: words reads 8 of its 20 tokens, up to character 30 of 120"
    (note,) = shelf.search("缓存 雪崩 words")[0].notes
    assert "has no word for 2 of the query's 3 tokens" in note


def test_texts_that_the_encoder_cannot_read_are_named(tmp_path):
    docs = laid(tmp_path / "docs", {"zh.txt": "缓存 雪崩 是 什么", "en.txt": "what is a cache avalanche"})
    report = mirror(Library.create(tmp_path / "i", Recipe(keep=1.0, codec="float32"), Read()), docs)
    assert list(report.unread) == ["zh.txt"]
    assert report.unread["zh.txt"] > 0.5


# ---- an earlier release


@pytest.fixture
def old(tmp_path):
    shutil.copytree(OLD, tmp_path / "old")
    docs = laid(
        tmp_path / "docs",
        {"read.md": "# Reading\n\nOpen a file and read it line by line.\n",
         "page.html": "<html><head><title>Cats</title></head><body><p>A cat &amp; a <b>do</b>g sit.</p></body></html>"},
    )  # fmt: skip
    return tmp_path / "old", docs


def test_an_index_of_the_first_release_is_read_as_it_is(old):
    at, _ = old
    before = {p.name: p.read_bytes() for p in at.iterdir()}
    shelf = Library.open(at, Words())
    assert shelf.names() == {"read.md", "page.html", "attachment-7", "letter.txt"}
    assert shelf.search("read a file", k=1)[0].document == "read.md"
    assert shelf.get("letter.txt")[0]["metadata"] == {"lang": "en"}
    assert shelf.index.verify() == []
    assert {p.name: p.read_bytes() for p in at.iterdir()} == before


def test_it_is_brought_to_the_format_of_this_one_without_encoding(old):
    at, docs = old
    shelf = Library.open(at, Words())
    report = mirror(shelf, docs)
    assert (report.written, report.unchanged, report.removed, shelf.encoder.read) == (0, 2, 0, [])
    assert files.read_json(at / "manifest.json")["version"] == 2
    (docs / "page.html").unlink()
    assert mirror(shelf, docs).removed == 1
    assert shelf.names() == {"read.md", "attachment-7", "letter.txt"}
    assert Library.open(at, Words()).recipe.keep == 0.5


def test_a_newer_format_is_refused_by_name(tmp_path):
    index = filled(tmp_path / "i", "a")
    rewritten(index.folder, lambda held: held.update(version=3))
    with pytest.raises(Incompatible, match=r"of version 3; this release reads versions 1 to 2"):
        Index.open(index.folder)


# ---- a stranger's


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m["segments"][0].update(file="../x.safetensors"), r"names the file '\.\./x\.safetensors'"),
        (lambda m: m["segments"][0].update(file="/etc/passwd"), "names the file '/etc/passwd'"),
        (lambda m: m["segments"][0].update(dead={"file": "../x.dead", "crc": 0}), "names the file"),
        (lambda m: m.update(codec_state={"file": "../../c.codec", "crc": 1}), "names the file"),
        (lambda m: m["segments"][0].update(docs=-1), "docs of 000001.safetensors is -1"),
        (lambda m: m["segments"][0].update(deleted="none"), "deleted of 000001.safetensors is 'none'"),
        (lambda m: m.update(segments=m["segments"] * 2), "names a segment twice"),
        (lambda m: m.update(dim=True), "dim is True"),
        (lambda m: m.pop("dim"), "says nothing of 'dim'"),
        (lambda m: m.update(codec="zip"), "no vector format is called 'zip'"),
        (lambda m: m.update(codec="int4"), "its index says"),
        (lambda m: m.update(dim=16), "its index says"),
        (lambda m: m.update(sketch=3), "sketch is 3"),
        (lambda m: m.update(plan={"depths": {"10": "x"}}), "depth of a plan is 'x'"),
        (lambda m: m.update(plan=[1]), "is not a manifest"),
        (lambda m: m.update(segments=5), "is not a manifest"),
    ],
)
def test_a_manifest_that_lies_is_refused_by_name(tmp_path, change, says):
    index = filled(tmp_path / "i", "abc")
    shutil.copy(next(iter(index.folder.glob("*.safetensors"))), tmp_path / "x.safetensors")
    rewritten(index.folder, change)
    with pytest.raises(IndexProblem, match=says):
        Index.open(index.folder)


@pytest.mark.parametrize("count", [0, 2, 4, 10**9])
def test_counts_that_lie_are_named_and_the_rest_is_searched(tmp_path, count):
    index = filled(tmp_path / "i", "abc")
    index.add([torch.randn(2, DIM)], ["d"])
    index.close()
    rewritten(index.folder, lambda m: m["segments"][0].update(docs=count))
    again = Index.open(index.folder)
    assert [h.id for h in again.search(torch.randn(2, DIM))] == ["d"]
    assert "000001.safetensors" in str(again.damaged)
    assert len(again) == 1


def forged(folder, tensor, value):
    """A tensor as a stranger may write it, with every checksum that fits."""
    (file,) = folder.glob("*.safetensors")
    tensors = {k: v.clone() for k, v in files.map_tensors(file).items()}
    tensors[tensor] = value(tensors[tensor])
    files.write_tensors(file, tensors)

    def change(m):
        m["segments"][0]["size"] = file.stat().st_size
        m["segments"][0]["crc"][tensor] = files.crc(tensors[tensor])

    rewritten(folder, change)


@pytest.mark.parametrize(
    ("tensor", "value"),
    [
        ("token:offsets", lambda x: x * 1000), ("token:offsets", lambda x: x.flip(0)), ("token:offsets", lambda x: x.float()),
        ("token:blocks", lambda x: x + 5), ("id_ends", lambda x: x * 1000), ("meta_ends", lambda x: x - 10),
        ("key_doc", lambda x: x + 7),
        ("key", lambda x: x[:1]),
    ],
)  # fmt: skip
def test_places_outside_of_a_segment_are_refused(tmp_path, tensor, value):
    index = filled(tmp_path / "i", "abc")
    forged(index.folder, tensor, value)
    again = Index.open(index.folder)
    for hit in again.search(torch.randn(2, DIM), where={"a": None}):
        assert hit.metadata == {}
        assert tensor == "meta_ends"
    again.verify()
    assert "000001.safetensors" in str(again.damaged)


@pytest.mark.parametrize(
    "change", [{"spans": [0, 1]}, {"spans": None}, {"span": "x"}, {"span": [1, 2, 3]}, {"text": 5}, {"document": []},
    {"$context": 3}]
)  # fmt: skip
def test_passages_that_are_none_are_passed_over(tmp_path, change):
    shelf = made(tmp_path / "i")
    shelf.put([Text("a", "one file"), Text("b", "one file more")])
    held = shelf.index.get("a#0")
    shelf.index.put([held.vectors], ["a#0"], [{**held.metadata, **change}])
    assert [h.document for h in shelf.search("file")] == ["b"]


def test_an_encoder_that_wants_code_is_refused(tmp_path, docs):
    at = tmp_path / "i"
    shelf = made(at)
    mirror(shelf, docs)
    shelf.close()
    (tmp_path / "model").mkdir()
    config = {"model_type": "evil", "auto_map": {"AutoModel": "evil.Evil"}, "architectures": ["Evil"]}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    (tmp_path / "model" / "evil.py").write_text("raise SystemExit('ran')")
    rewritten(at, lambda held: held.update(encoder=str(tmp_path / "model")), "library.json")
    with pytest.raises(IndexProblem, match="which cannot be loaded"):
        Library.open(at).search("subject")


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"crc":0,"body":[]}'])
def test_a_recipe_that_is_none_is_refused(tmp_path, text):
    made(tmp_path / "i").close()
    (tmp_path / "i" / "library.json").write_text(text)
    with pytest.raises(Damaged):
        Library.open(tmp_path / "i")


# ---- commands


def call(*args, code=0):
    done = CliRunner().invoke(app, [str(a) for a in args])
    assert done.exit_code == code, (done.output, done.exception)
    return done.stdout


def test_an_index_is_looked_after_by_commands(tmp_path, docs, monkeypatch):
    monkeypatch.setattr(loading, "load_encoder", lambda source=None, **_: Words())
    out = tmp_path / "i"
    call("index", docs, "--out", out, "--codec", "int4", "--exclude", "11.txt")
    told = json.loads(call("info", out, "--json"))
    assert (told["documents"], told["passages"], told["exclude"], told["damaged"]) == (11, 11, ["11.txt"], [])
    assert told["bytes"]["all files"] >= sum(v for k, v in told["bytes"].items() if k != "all files") > 0
    assert "int4" in call("info", out)
    assert "all of it is what was written" in call("verify", out)
    assert json.loads(call("delete", out, "0.txt", "nothing", "--json", code=1)) == {
        "deleted": 1,
        "missing": ["nothing"],
    }
    assert json.loads(call("info", out, "--json"))["documents"] == 10
    (file,) = out.glob("*.safetensors")
    flip(file, "token.codes")
    assert json.loads(call("verify", out, "--json", code=1))["damaged"][0].startswith(
        "i: 000001.safetensors: token block"
    )
    assert "repaired: 000001.safetensors" in call("index", docs, "--out", out)
    assert json.loads(call("info", out, "--json"))["documents"] == 11


def test_shards_are_looked_after_by_the_same_commands(tmp_path, docs, monkeypatch):
    monkeypatch.setattr("tokensieve.retrieval.shards.build._encoder", lambda source: Words())
    out = tmp_path / "s"
    call("index", docs, "--out", out, "--shards", "2")
    told = json.loads(call("info", out, "--json"))
    assert sum(one["documents"] for one in told) == 12
    assert json.loads(call("delete", out, "0.txt", "7.txt", "--json")) == {"deleted": 2, "missing": []}
    call("verify", out)
    call("compact", out)
    assert sum(one["documents"] for one in json.loads(call("info", out, "--json"))) == 10


def test_a_port_in_use_is_said_before_anything_is_served(tmp_path, docs):
    import socket

    shelf = made(tmp_path / "i")
    mirror(shelf, docs)
    shelf.close()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        done = CliRunner().invoke(app, ["serve", str(tmp_path / "i"), "--port", str(other.getsockname()[1])])
    assert isinstance(done.exception, ValueError)
    assert "cannot be listened at" in str(done.exception)
    assert "http://" not in done.stdout


def test_texts_are_encoded_anew_without_their_files(tmp_path, docs, monkeypatch):
    monkeypatch.setattr(loading, "load_encoder", lambda source=None, **_: Words(source or "words"))
    out, new = tmp_path / "i", tmp_path / "new"
    (docs / "guide.md").write_text("# Guide\n\n" + "Of the guide. " * 90)
    call("index", docs, "--out", out)
    shelf = Library.open(out, Words())
    shelf.put([Text("mine", "a note", {"lang": "en"})])
    shelf.close()
    (tmp_path / "gone").mkdir()
    docs.rename(tmp_path / "gone" / "docs")
    call("reindex", out, "--out", new, "--codec", "int4")
    again = Library.open(new, Words())
    assert again.recipe.codec == "int4"
    assert again.names() == Library.open(out, Words()).names()
    assert again.get("guide.md") == Library.open(out, Words()).get("guide.md")
    assert again.search("note", k=1)[0].metadata == {"lang": "en"}
    again.encoder.read.clear()
    call("reindex", out, "--out", new)  # nothing is left to do
    (tmp_path / "gone" / "docs" / "0.txt").unlink()
    assert mirror(again, tmp_path / "gone" / "docs").removed == 1
    assert (again.encoder.read, "mine" in again.names()) == ([], True)
    call("reindex", out, "--out", tmp_path / "other", "--encoder", "other/model")
    assert Library.open(tmp_path / "other", Words("other/model")).names() == Library.open(out, Words()).names()
