"""Folder: the texts of a folder's files, one document each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from tokensieve.retrieval.passages import Page, Span, cut, halves

PAGES = (".html", ".htm", ".xhtml")
FILE = "file"
LARGEST = 64 << 20
"""Bytes of a file; larger ones are data more often than text."""


@dataclass(frozen=True)
class Piece:
    """A passage of a text, and the characters of its source that it stands for."""

    text: str
    span: Span


@dataclass(frozen=True)
class Text:
    """A document before it is encoded.

    Attributes:
        name: its id.
        metadata: JSON values, for filters.
        page: read the source as HTML.
    """

    name: str
    source: str
    metadata: dict[str, Any] = field(default_factory=dict)
    page: bool = False

    @property
    def digest(self) -> str:
        return sha256(repr((self.source, sorted(self.metadata.items()))).encode(errors="replace")).hexdigest()[:16]

    def pieces(self, too_long: Callable[[list[str]], list[bool]] | None = None) -> list[Piece]:
        """Its passages in their order; those that ``too_long`` says so of are cut in two."""
        page = Page.read(self.source) if self.page else None
        text = self.source if page is None else page.text
        spans = cut(text)
        while too_long is not None and spans:
            found = [
                long and b - a > 1 for long, (a, b) in zip(too_long([text[a:b] for a, b in spans]), spans, strict=True)
            ]
            if not any(found):
                break
            spans = [
                s for span, long in zip(spans, found, strict=True) for s in (halves(text, span) if long else [span])
            ]
        return [Piece(text[a:b], (a, b) if page is None else page.source((a, b))) for a, b in spans]


@dataclass
class Folder:
    """Texts below a folder: Markdown, HTML, code and all else that is UTF-8.

    Names that begin with a dot are passed over, and so is ``without`` (an index that stands in the folder).

    Attributes:
        skipped: after :meth:`texts`, the files that are no text, and why.
    """

    root: Path
    without: Path | None = None
    skipped: dict[str, str] = field(default_factory=dict)

    def files(self) -> list[Path]:
        """All files, in the order of their names.

        Raises:
            ValueError: there is no such folder, or no file in it.
        """
        if not self.root.is_dir():
            raise ValueError(f"{self.root} is no folder; name one that holds the documents")
        out = []
        for at, folders, names in os.walk(self.root):
            folders[:] = sorted(d for d in folders if not d.startswith(".") and not self._left_out(Path(at, d)))
            out += [Path(at, n) for n in sorted(names) if not n.startswith(".")]
        if not out:
            raise ValueError(f"{self.root} holds no files; nothing to index")
        return out

    def texts(self, files: list[Path]) -> Iterator[Text]:
        """The files that can be read as text."""
        for file in files:
            name = file.relative_to(self.root).as_posix()
            problem, source = _read(file) if name.isprintable() else ("its name cannot be shown", None)
            if source is None:
                self.skipped[ascii(name)[1:-1]] = problem
            else:
                suffix = file.suffix.lower()
                yield Text(name, source, {"kind": FILE, "suffix": suffix}, suffix in PAGES)

    def _left_out(self, folder: Path) -> bool:
        return self.without is not None and folder.resolve() == self.without.resolve()


def _read(file: Path) -> tuple[str, str | None]:
    try:
        if not file.is_file():
            return "not a regular file", None
        if file.stat().st_size > LARGEST:
            return f"larger than {LARGEST >> 20} MiB", None
        data = file.read_bytes()
    except OSError as problem:
        return str(problem.strerror), None
    if b"\0" in data:
        return "binary", None
    try:
        return "", data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        return f"not UTF-8 (byte {problem.start})", None
