"""Documents: the text of PDF, Word, PowerPoint and EPUB files.

PDF by pypdfium2, page by page; the others by markitdown. Both are of the extra `documents`. Of two real PDFs (17 and 36 pages)
markitdown's own way loses the blanks between all words of one, says nothing of pages, and takes forty times as long; on Word
and PowerPoint it keeps headings, lists and tables as Markdown.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable
from importlib import import_module
from typing import Any

from tokensieve.extras import install
from tokensieve.retrieval.sources.layout import Layout, Unit
from tokensieve.retrieval.sources.readers import prose, register_reader

PAGE_BREAK = "\f"
LARGEST = 1 << 29
"""Bytes of what an archive unpacks to."""
SLIDE = re.compile(r"<!-- Slide number: \d+ -->\s*")
PACKED = (
    b"\x1f\x8b\x08", b"\xfd7zXZ\0", b"7z\xbc\xaf'\x1c", b"Rar!\x1a\x07", b"\x28\xb5\x2f\xfd",
    *(b"BZh%d1AY&SY" % level for level in range(1, 10)),
)  # fmt: skip
"""The first bytes of files that gzip, xz, 7-Zip, RAR, Zstandard and bzip2 have packed."""
OLD = b"\xd0\xcf\x11\xe0"
"""The first bytes of Office files before 2007."""


class NoText(Exception):
    """A file that is not indexed, and why."""


def kind_of(data: bytes) -> str | None:
    """What kind of document bytes are ("pdf", "docx", ...), by what they hold; None for anything else.

    Raises:
        NoText: it is one that cannot be read; it says what can be done.
    """
    if data[:1024].lstrip().startswith(b"%PDF-"):
        return "pdf"
    if data.startswith(OLD):
        raise NoText("an Office file of before 2007; save it as docx or pptx")
    if data.startswith(PACKED) or (data[257:262] == b"ustar" and b"\0" in data[:257]):
        raise NoText("an archive; unpack it")
    if not data.startswith(b"PK\x03\x04"):
        return None
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = set(archive.namelist())
            if sum(i.file_size for i in archive.infolist()) > LARGEST:
                raise NoText(f"an archive of more than {LARGEST >> 20} MiB when unpacked")
            if "mimetype" in names and archive.read("mimetype").strip() == b"application/epub+zip":
                return "epub"
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError) as problem:
        raise NoText(f"an archive that cannot be opened ({problem})") from problem
    for name, kind in (("word/document.xml", "docx"), ("ppt/presentation.xml", "pptx")):
        if name in names:
            return kind
    if "xl/workbook.xml" in names:
        raise NoText("a spreadsheet; save its sheets as CSV")
    raise NoText("an archive; unpack it")


def text_of(data: bytes, kind: str) -> tuple[str, str]:
    """The text of a document, and the reader of it.

    Raises:
        NoText: it is encrypted, made of scans, damaged, or what reads it is not installed.
    """
    if kind == "pdf":
        return _pdf(data), "pages"
    markitdown = _needed("markitdown")
    info = markitdown.StreamInfo(extension=f".{kind}")
    try:
        said = markitdown.MarkItDown(enable_plugins=False).convert_stream(io.BytesIO(data), stream_info=info).markdown
    except Exception as problem:  # of the many libraries behind it
        raise NoText(f"cannot be read as {kind} ({type(problem).__name__})") from problem
    if kind == "pptx":
        said = SLIDE.sub(PAGE_BREAK, said.strip()).removeprefix(PAGE_BREAK)
    return said, "slides" if kind == "pptx" else "markdown"


def _pdf(data: bytes) -> str:
    pdfium = _needed("pypdfium2")
    try:
        document = pdfium.PdfDocument(data)
    except pdfium.PdfiumError as problem:
        why = "encrypted; save a copy without a password" if "assword" in str(problem) else f"damaged ({problem})"
        raise NoText(f"a PDF that is {why}") from problem
    with document:
        pages = []
        for number in range(len(document)):
            try:
                page = document[number]
                pages.append(_flowing(page.get_textpage().get_text_bounded()))
                page.close()
            except pdfium.PdfiumError:
                pages.append("")
    if not any(page.strip() for page in pages):
        raise NoText(
            f"a PDF of {len(pages)} pages without text, as of scans; have their letters recognised first (ocrmypdf)"
        )
    return PAGE_BREAK.join(pages)


def _flowing(page: str) -> str:
    """Lines as such, and words that a line has parted in one."""
    return (
        re.sub(r"[\ufffe\x02]\n?", "", page.replace("\r\n", "\n").replace("\r", "\n"))
        .replace("\0", "")
        .replace("\f", "\n")
    )


def _needed(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as problem:
        raise NoText(f"needs {module}; {install('documents')}") from problem


def _parted(source: str, what: str, read: Callable[[str], Layout]) -> Layout:
    units: list[Unit] = []
    start = 0
    for number, part in enumerate(source.split(PAGE_BREAK), 1):
        units += prose.shifted(read(part).units, start, f"{what} {number}")
        start += len(part) + len(PAGE_BREAK)
    return Layout(source, units)


def _no(name: str, head: str) -> bool:
    return False


@register_reader("pages", _no)
def pages(source: str) -> Layout:
    """Pages of plain text, parted by form feeds."""
    return _parted(source, "page", prose.plain)


@register_reader("slides", _no)
def slides(source: str) -> Layout:
    """Slides as Markdown, parted by form feeds."""
    return _parted(source, "slide", prose.markdown)
