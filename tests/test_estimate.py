"""What an index will cost is told before it is made."""

from __future__ import annotations

import json
import random

import pytest
from typer.testing import CliRunner

import tokensieve as ts
from tests.shelf import Words, laid
from tokensieve.cli import indexing
from tokensieve.cli.main import app
from tokensieve.retrieval.encoders import loading
from tokensieve.retrieval.index.library import Library
from tokensieve.retrieval.index.sync import mirror


@pytest.fixture(autouse=True)
def encoder(monkeypatch):
    monkeypatch.setattr(loading, "load_encoder", lambda source=None, **_: Words())


@pytest.fixture
def docs(tmp_path):
    """Short notes, long pages of which half is markup, pictures."""
    draw = random.Random(0)

    def said(count):
        return " ".join("".join(draw.choices("abcdefgh", k=draw.randint(2, 9))) for _ in range(count))

    texts = {f"n{i}.txt": said(30) for i in range(150)}
    texts |= {f"p{i}.html": f"<main><p>{said(80)}</p>{'<!-- x -->' * 50}<p>{said(80)}</p></main>" for i in range(60)}
    folder = laid(tmp_path / "docs", texts)
    for i in range(20):
        (folder / f"i{i}.png").write_bytes(b"\x89PNG\0" * 5000)
    return folder


def test_it_is_about_what_the_index_is(tmp_path, docs):
    recipe = ts.Recipe()
    told = ts.cost(recipe, docs)
    library = Library.create(tmp_path / "i", recipe)
    mirror(library, docs)
    disk = sum(f.stat().st_size for f in (tmp_path / "i").iterdir())
    assert told.files == 230
    assert told.passages == pytest.approx(len(library), rel=0.15)
    assert told.vectors == pytest.approx(library.size["vectors"], rel=0.15)
    assert told.bytes == pytest.approx(disk, rel=0.25)
    assert told.text_bytes == pytest.approx(150 * 190 + 60 * 1000, rel=0.15)
    assert told.file_bytes == sum(f.stat().st_size for f in docs.iterdir())
    assert str(told).startswith(f"about {told.passages:,} passages of 230 files, ")


def test_by_command(tmp_path, docs, monkeypatch):
    def call(*args):
        done = CliRunner().invoke(app, [str(a) for a in args])
        assert done.exit_code == 0, done.exception
        return done

    out = tmp_path / "my.index"
    told = json.loads(call("index", docs, "--out", out, "--keep", "0.5", "--dry-run", "--json").stdout)
    assert told["files"] == 230
    assert not out.exists()
    assert "about " in call("index", docs, "--out", out, "--dry-run").stdout
    assert "about " not in call("index", docs, "--out", out).stderr
    assert call("index", docs, "--out", out, "--dry-run").stdout == "nothing new; nothing to encode\n"
    monkeypatch.setattr(indexing, "MUCH", 1)
    (docs / "new.txt").write_text("A new note of some words.")
    assert "about 1 passages of 21 files" in call("index", docs, "--out", out).stderr
    assert "passages" not in call("index", docs, "--out", out).stderr.split("files")[0]


def test_a_folder_without_text_costs_nothing(tmp_path):
    (tmp_path / "x.bin").write_bytes(b"\0")
    assert (ts.cost(ts.Recipe(), tmp_path).passages, ts.cost(ts.Recipe(), tmp_path).bytes) == (0, 0)
    with pytest.raises(ValueError, match="is no folder"):
        ts.cost(ts.Recipe(), tmp_path / "none")
