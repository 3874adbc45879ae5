"""What files are read as, and where a text is cut: as a reader would, and with its place in the source."""

from __future__ import annotations

import io
import json
import re
import zipfile
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokensieve.retrieval.sources import documents
from tokensieve.retrieval.sources.folder import Folder
from tokensieve.retrieval.sources.layout import Layout, Unit
from tokensieve.retrieval.sources.passages import STRETCH, cut
from tokensieve.retrieval.sources.readers import READERS, reader_of, register_reader
from tokensieve.retrieval.sources.readers.html import html
from tokensieve.retrieval.sources.readers.notebook import notebook
from tokensieve.retrieval.sources.readers.prose import markdown, plain, rst
from tokensieve.retrieval.sources.texts import Text

MARKUP = [
    "<p>",
    "</p>",
    "<b>",
    "a b",
    "&amp;",
    "&#233;",
    "\n",
    "<br/>",
    "é",
    "<!-- c -->",
    "&",
    "<td>",
    "<li>",
    "<pre>",
    " ",
]


def pieces(source, reader="markdown", **how):
    return Text("a", source, reader=reader).pieces(**how)


def kinds(layout):
    return [(u.kind, u.level, layout.text[u.start : u.end].strip()) for u in layout.units]


def took(folder, **files):
    """What a folder gives, by name."""
    for name, held in files.items():
        file = folder / name.replace("__", ".")
        file.write_bytes(held) if isinstance(held, bytes) else file.write_text(held)
    found = Folder(folder)
    return {t.name: t for t in found.texts(found.files())}, found


# ---- cutting


@given(st.text(st.sampled_from("ab.\n\t #é。:|-")), st.integers(1, 30), st.sampled_from([markdown, plain, rst]))
def test_passages_hold_all_but_blanks(text, most, reader):
    spans = cut(reader(text), most)
    assert all(0 <= a < b <= len(text) for a, b in spans)
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
    assert "".join("".join(text[a:b] for a, b in spans).split()) == "".join(text.split())
    assert all(text[a:b].strip() and text[a:b] == text[a:b].rstrip() for a, b in spans)
    # Indentation is not counted against the most.
    assert all(len(text[a:b].strip()) <= max(most * STRETCH, 1) for a, b in spans)


@pytest.mark.parametrize("reader", ["markdown", "rst", "plain"])
def test_a_heading_stays_with_what_follows(reader):
    sections = [f"Section {i}\n{'=' * 12}\n\n{'Words of it go on. ' * (5 + i)}" for i in range(12)]
    made = pieces("\n\n".join(sections), reader)
    assert len(made) > 3
    assert not any(re.search(r"={5,}$", p.text) for p in made)
    assert all(p.text.startswith("Section") for p in made)


def test_what_ends_in_a_colon_is_not_last():
    """A description and its command, as tldr pages have them."""
    source = "# ffmpeg\n\n> Video conversion tool.\n\n" + "\n\n".join(
        f"- Convert the video {i} into another format and keep its sound:\n\n`ffmpeg -i input{i}.mp4 out{i}.gif`"
        for i in range(40)
    )
    made = pieces(source)
    assert len(made) > 3
    assert not any(p.text.endswith(":") for p in made)
    assert all(p.context in ("", "ffmpeg") for p in made)


def test_fences_and_items_stay_whole():
    code = "\n".join(f"    line {i} of code" if i % 4 else "\n    # not a heading" for i in range(14))
    source = "\n\n".join(f"Some words before number {i}. {'More of them. ' * 20}\n\n```\n{code}\n```" for i in range(6))
    made = pieces(source)
    assert len(made) > 5
    assert all(p.text.count("```") % 2 == 0 for p in made)
    items = "\n".join(
        f"- item {i} says {'something of some length ' * 5}\n  and goes on in a second line" for i in range(20)
    )
    assert all(p.text.lstrip().startswith("- item") and p.text.endswith("second line") for p in pieces(items))


def test_a_fence_is_never_a_heading_and_keeps_its_indentation():
    source = "```sh\n    # finish\n    make\n```\n"
    assert kinds(markdown(source)) == [("fence", 0, source.strip())]
    long = "\n".join(f"    step{i}()  # {'x' * 30}" for i in range(60))
    assert all(p.text.startswith("    step") for p in pieces(f"```\n{long}\n```")[1:])


def test_tables_repeat_their_heads_above_their_rows():
    rows = "".join(f"| `opt_{i}` | {i} | ms |\n" for i in range(80))
    made = pieces(f"# Reference\n\n## Client\n\n| option | default | unit |\n|---|---|---|\n{rows}")
    assert len(made) > 2
    assert "| option | default |" in made[0].text
    for p in made[1:]:
        assert p.context == "Reference > Client\n| option | default | unit |\n|---|---|---|"
        assert p.text.startswith("| `opt_")
        assert p.said == f"{p.context}\n{p.text}"
    assert min(len(p.text) for p in made) > 200


def test_no_crumbs_are_left():
    """Even where an encoder takes far fewer characters than a passage has."""
    source = "\n".join(f"第{i}行：" + "缓存雪崩是什么" * 6 for i in range(60))
    made = pieces(source, sizes=lambda texts: [len(t) for t in texts], limit=254)
    assert max(len(p.said) for p in made) <= 254
    fit = [len(a.text) + len(b.text) <= 180 for a, b in pairwise(made)]
    assert not any(fit)
    assert min(len(p.text) for p in made) > 80


def test_what_is_too_long_for_the_encoder_is_cut_further():
    text = "one two three four five six seven eight"
    got = [p.text for p in pieces(text, sizes=lambda texts: [len(t.split()) for t in texts], limit=3)]
    assert " ".join(got) == text
    assert max(len(t.split()) for t in got) <= 3
    assert [p.text for p in pieces("xyz", sizes=lambda texts: [9 for _ in texts], limit=1)] == ["x", "y", "z"]


def test_headings_above_a_passage_are_its_path():
    source = "# Guide\n\n## First\n\n" + "Of the first. " * 80 + "\n\n## Second\n\n### Deep\n\n" + "Of the depth. " * 80
    found = [(p.context, p.text[:10].strip()) for p in pieces(source)]
    assert ("Guide > First", "Of the fir") in found
    assert ("Guide > Second > Deep", "Of the dep") in found
    assert ("", "# Guide\n\n#") in found


def test_passages_may_overlap_by_whole_sentences():
    source = " ".join(f"Sentence number {i} stands here." for i in range(100))
    apart, over = pieces(source, overlap=0), pieces(source, overlap=100)
    assert [p.span[1] for p in over] == [p.span[1] for p in apart]
    for before, own, wide in zip(apart, apart[1:], over[1:], strict=False):
        assert own.span[0] - 100 <= wide.span[0] < own.span[0]
        assert wide.span[0] > before.span[0]
        assert wide.text.startswith("Sentence")


# ---- places


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_lines_are_told_and_spans_count_in_what_is_read_as_utf8(tmp_path, mark):
    source = mark + "\n\n".join(f"Paragraph {i}. " + "words " * 60 for i in range(9))
    texts, _ = took(tmp_path, note__md=source)
    for p in texts["note.md"].pieces():
        assert source[slice(*p.span)] == p.text
        assert p.place == f"line {source.count(chr(10), 0, p.span[0]) + 1}"
        assert not p.text.startswith("\ufeff")


@given(st.lists(st.sampled_from(MARKUP)))
def test_a_page_knows_its_source(parts):
    source = "".join(parts)
    layout = html(source)
    for m in re.finditer(r"[ab&é]", layout.text):
        a, b = layout.source(m.span())
        assert source[a:b] in {m.group(), "&amp;", "&#233;"}


def test_a_page_without_what_surrounds_it():
    source = """<!doctype html><html><head><title>Book</title><style>p {}</style></head><body>
      <nav><ul><li>Auto</li><li>Light</li><li>Rust</li></ul></nav><div hidden>Keyboard shortcuts</div>
      <div id="help" style="display: none">Press S</div><div aria-hidden="true">icons</div><button>Copy</button>
      <main><h1>Paths</h1><p>A cat &amp; a
         <b>do</b>g sit.</p><img alt="a map of modules"><h2>Tables</h2>
      <table><tr><th>name</th><th>size</th></tr><tr><td>u8</td><td>1</td></tr><tr><td>u16</td><td>2</td></tr></table>
      <script>var x;</script></main><footer>Imprint</footer></body></html>"""
    layout = html(source)
    assert layout.text == "Paths\n\nA cat & a dog sit.\n\na map of modules\n\nTables\n\nname | size\nu8 | 1\nu16 | 2"
    assert [(k, level) for k, level, _ in kinds(layout)] == [
        ("heading", 1), ("text", 0), ("text", 0), ("heading", 2), ("head", 0), ("row", 0), ("row", 0)
    ]  # fmt: skip
    a = layout.text.index("A cat")
    assert source[slice(*layout.source((a, a + 18)))].startswith("A cat &amp; a")
    # Without main or article the page is read whole, and its title stands above it.
    assert html("<title>T</title><p>a<p>b").text == "T\n\na\n\nb"


@pytest.mark.parametrize(
    "bad", ["<a x='", '<a x="', "<a ", "<!--", "<![CDATA[", "<", "&amp", "<div>", "</p", "<b x=y'"]
)
def test_markup_that_never_ends_costs_no_more_than_its_length(bad):
    """Steps are counted as characters looked at: a parser that looks back would need minutes."""
    layout = html(bad * (200_000 // len(bad)))
    assert len(layout.text) <= 400_000


@pytest.mark.parametrize(
    "odd", ["<![%draft;[ text ]]>", "<![foo[ hello ]]>", "<!>", "<?php echo 1 ?>", "<3", "&bogus;"]
)
def test_odd_markup_is_read_over(odd):
    assert html(f"<p>before {odd} behind</p>").text.split()[0] == "before"
    assert html(f"<p>before {odd} behind</p>").text.split()[-1] == "behind"


def test_a_notebook_is_its_cells():
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "Say \"hello\" \\\\ caf\u00e9 \U0001f600"]},
        {"cell_type": "code", "source": "clf.fit(x,\n        y)", "outputs": [{"data": {"image/png": "iVBOR" * 400}}]},
        {"cell_type": "code", "source": []}, {"cell_type": "markdown", "source": ["More words."]},
    ]  # fmt: skip
    source = json.dumps({"metadata": {"a": [1, {"source": "no"}]}, "cells": cells, "nbformat": 4}, indent=1)
    layout = notebook(source)
    assert layout.text.rstrip() == (
        '# Title\nSay "hello" \\\\ café \U0001f600\n\nclf.fit(x,\n        y)\n\nMore words.'
    )
    assert {u.place for u in layout.units} == {"cell 1", "cell 2", "cell 4"}
    assert layout.left_out == {"outputs": 1}
    for word in ("Title", "clf", "More", "hello"):
        a = layout.text.index(word)
        assert source[slice(*layout.source((a, a + len(word))))] == word
    a = layout.text.index("é")
    assert source[slice(*layout.source((a, a + 1)))] == "\\u00e9"
    (piece,) = Text("n.ipynb", source, reader="notebook").pieces()
    assert piece.place == "cell 1"
    assert "iVBOR" not in piece.text


@pytest.mark.parametrize(
    "source", ["", "{", "[]", '{"cells": 3}', "{}", '{"cells": [3, {"source": 5}]}', "\x00", '{"cells": [}']
)
def test_what_is_no_notebook_is_read_as_text(source):
    assert Text("n.ipynb", source or "x", reader="notebook").layout.text is not None


def test_code_is_cut_at_what_it_defines():
    method = '    def method{i}(self):\n        """Does {i}."""\n' + "        self.call()\n" * 12
    source = (
        "class Thing:\n"
        + "\n".join(method.replace("{i}", str(i)) for i in range(6))
        + "\n\n# Above it.\n@made\ndef last():\n    pass\n"
    )
    made = pieces(source, "code")
    assert all(re.match(r"(class Thing|\s+def method)", p.text) for p in made[:-1])
    assert {p.context for p in made[1:]} <= {"class Thing", ""}
    assert any("# Above it.\n@made\ndef last" in p.text for p in made)


# ---- choosing


@pytest.mark.parametrize(
    ("name", "source", "reader"),
    [
        ("a.md", "x", "markdown"), ("a.rst", "x", "rst"), ("a.py", "x", "code"), ("a.html", "x", "html"),
        ("a.ipynb", "{}", "notebook"),
        ("a.txt", "x", "plain"), ("page", "\n<!DOCTYPE html><p>x", "html"), ("run", "#!/bin/sh\nls", "code"),
        ("README", "# A\n\n# B\n\n```\nx\n```", "markdown"), ("README", ".. note:: x\n\n``a`` and ``b``", "rst"),
        ("a.csv", "a,b", "plain"),
    ],
)  # fmt: skip
def test_files_are_read_by_what_they_hold(name, source, reader):
    assert reader_of(name, source) == reader


def test_a_reader_of_ones_own_is_asked_first(tmp_path):
    @register_reader("shout", lambda name, head: name.endswith(".shout"))
    def shout(source):
        return Layout(source.upper(), [Unit(0, len(source))])

    try:
        texts, _ = took(tmp_path, a__shout="quiet words", b__txt="as they are")
        assert texts["a.shout"].plain == "QUIET WORDS"
        assert texts["b.txt"].plain == "as they are"
    finally:
        READERS.forget("shout")


def test_one_reader_that_fails_ends_nothing(tmp_path):
    @register_reader("broken", lambda name, head: name.endswith(".broken"))
    def broken(source):
        raise AssertionError("expected name token")

    try:
        texts, found = took(tmp_path, a__broken="x", b__txt="fine")
        assert list(texts) == ["b.txt"]
        assert found.skipped == {"a.broken": "cannot be read (AssertionError: expected name token)"}
    finally:
        READERS.forget("broken")


# ---- what is no document


def test_encodings_that_are_sure_are_read(tmp_path):
    russian = "Широкая электрификация южных губерний даст мощный толчок подъёму сельского хозяйства. " * 5
    texts, found = took(
        tmp_path, a__txt="Notiz über Flüsse".encode("utf-16"), b__txt=russian.encode("cp1251"), c__txt="naïve".encode("latin-1"),
        d__txt=b"\xff\xfea",
    )  # fmt: skip
    assert texts["a.txt"].source == "Notiz über Flüsse"
    assert texts["b.txt"].source == russian
    assert found.skipped["c.txt"] == "not UTF-8 (byte 2), and no other encoding is certain; save it as UTF-8"
    assert "not UTF-16, of which it has the mark" in found.skipped["d.txt"]


def test_noise_is_left_out_and_said(tmp_path):
    data = "QUJD" * 100
    key = (
        "-----BEGIN RSA PRIVATE KEY-----\n"
        + "\n".join(["MIIEowIBAAKCAQEA" * 4] * 9)
        + "\n-----END RSA PRIVATE KEY-----\n"
    )
    texts, found = took(
        tmp_path, guide__md=f"# How\n\nWords before.\n\n{key}\n![x](data:image/png;base64,{data})\n\nWords behind.",
        server__pem=key,
        numbers__csv="1.5,2.5,3.5\n" * 400, app__min__js="var a=1;", one__js="x=" + "f(1)," * 900,
        package_lock__json="{}", draw__svg="<svg/>",
    )  # fmt: skip
    said = "\n".join(p.text for p in texts["guide.md"].pieces())
    assert "Words before." in said
    assert "Words behind." in said
    assert "MIIE" not in said
    assert data not in said
    assert "2 lines of base64, keys or minified code" in found.left_out["guide.md"]
    assert found.skipped == {
        "server.pem": "nothing in it but keys, base64 or minified code",
        "one.js": "nothing in it but keys, base64 or minified code",
        "numbers.csv": "numbers and signs, hardly a letter", "app.min.js": "made from other files", "draw.svg": "a drawing",
    } | ({} if "package_lock.json" in texts else {"package_lock.json": "a lock file"})  # fmt: skip


def test_what_git_ignores_is_passed_over(tmp_path):
    laid = {
        ".gitignore": "build/\n*.log\n!keep.log\n", "a.md": "x", "build/b.md": "x", "c.log": "x", "keep.log": "x",
        "sub/.gitignore": "only.md\n", "sub/only.md": "x", "sub/d.md": "x", "node_modules/p/e.js": "x", "only.md": "x",
    }  # fmt: skip
    for name, text in laid.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    folder = Folder(tmp_path)
    assert [f.relative_to(tmp_path).as_posix() for f in folder.files()] == ["a.md", "keep.log", "only.md", "sub/d.md"]
    assert folder.passed["node_modules/"] == "installed packages"
    assert "build/" in folder.passed
    assert folder.passed["2 files"].startswith("by .gitignore")
    some = Folder(tmp_path, include=["*.md"], exclude=["sub/"])
    assert [f.name for f in some.files()] == ["a.md", "only.md"]
    with pytest.raises(ValueError, match="holds no files"):
        Folder(tmp_path, include=["*.zig"]).files()


# ---- documents


def zipped(**files):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, text in files.items():
            archive.writestr(name.replace("__", "/"), text)
    return out.getvalue()


def test_documents_that_cannot_be_read_say_what_to_do(tmp_path):
    _, found = took(
        tmp_path, a__zip=zipped(x="1"), b__xlsx=zipped(**{"xl__workbook.xml": ""}), c__doc=b"\xd0\xcf\x11\xe0" + b"\0" * 99,
        d__docx=b"PK\x03\x04broken", e__pdf=b"%PDF-1.4\nbroken",
    )  # fmt: skip
    assert found.skipped["a.zip"] == "an archive; unpack it"
    assert found.skipped["b.xlsx"] == "a spreadsheet; save its sheets as CSV"
    assert "save it as docx" in found.skipped["c.doc"]
    assert "cannot be opened" in found.skipped["d.docx"]
    assert "PDF that is damaged" in found.skipped["e.pdf"] or "needs pypdfium2" in found.skipped["e.pdf"]


def test_what_reads_documents_may_not_be_installed(tmp_path, monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(documents, "import_module", missing)
    _, found = took(tmp_path, a__pdf=b"%PDF-1.4\n")
    assert found.skipped["a.pdf"] == "needs pypdfium2; in the checkout of tokensieve: pip install '.[documents]'"


def test_pages_are_told(tmp_path):
    pytest.importorskip("pypdfium2")
    from matplotlib.backends.backend_pdf import PdfPages
    from matplotlib.figure import Figure

    with PdfPages(tmp_path / "two.pdf") as out:
        for words in ("Rivers flow to the sea.", "Mountains stand still."):
            page = Figure()
            page.text(0.1, 0.5, words)
            out.savefig(page)
    with PdfPages(tmp_path / "scan.pdf") as out:
        page = Figure()
        page.add_axes([0, 0, 1, 1]).axis("off")
        out.savefig(page)
    texts, found = took(tmp_path)
    text = texts["two.pdf"]
    assert [(p.text, p.place) for p in text.pieces()] == [
        ("Rivers flow to the sea.", "page 1"), ("Mountains stand still.", "page 2")
    ]  # fmt: skip
    assert "".join(p.gap + p.text for p in text.pieces()) == text.source
    assert text.extracted
    assert "without text, as of scans" in found.skipped["scan.pdf"]
