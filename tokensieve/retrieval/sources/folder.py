"""Folder: the texts of a folder's files, one document each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any
from unicodedata import category

from tokensieve.retrieval.sources.passages import Page, Span, cut, halves, is_text

PAGES = (".html", ".htm", ".xhtml")
FILE = "file"
LARGEST = 64 << 20
"""Bytes of a file; larger ones are data more often than text."""
TOGETHER = 256
"""Passages looked at together: what tokens are held of a long text at once."""


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

    def __post_init__(self) -> None:
        for name in ("name", "source"):
            if not is_text(getattr(self, name)):
                raise ValueError(f"{name} of a text is a string of Unicode, not {getattr(self, name)!r}")
        if not self.name:
            raise ValueError("name of a text is empty; it is what the text is found and replaced by")

    @property
    def digest(self) -> str:
        return sha256(
            repr((self.source, sorted(self.metadata.items(), key=lambda item: str(item[0])))).encode(errors="replace")
        ).hexdigest()[:16]

    @property
    def plain(self) -> str:
        """What passages are cut from."""
        return self.source if self._read is None else self._read.text

    @cached_property
    def _read(self) -> Page | None:
        return Page.read(self.source) if self.page else None

    def pieces(self, too_long: Callable[[list[str]], list[bool]] | None = None) -> list[Piece]:
        """Its passages in their order; those that ``too_long`` says so of are cut in two."""
        page, text = self._read, self.plain
        spans = cut(text)
        if too_long is not None:
            parts = (spans[i : i + TOGETHER] for i in range(0, len(spans), TOGETHER))
            spans = [s for part in parts for s in _fitting(text, part, too_long)]
        return [Piece(text[a:b], (a, b) if page is None else page.source((a, b))) for a, b in spans]


def _fitting(text: str, spans: list[Span], too_long: Callable[[list[str]], list[bool]]) -> list[Span]:
    """Spans cut in two until none is too long."""
    while True:
        each = zip(too_long([text[a:b] for a, b in spans]), spans, strict=True)
        found = [long and b - a > 1 for long, (a, b) in each]
        if not any(found):
            return spans
        spans = [s for span, long in zip(spans, found, strict=True) for s in (halves(text, span) if long else [span])]


@dataclass
class Folder:
    """Texts below a folder: Markdown, HTML, code and all else that is UTF-8.

    Names that begin with a dot are passed over, and so is ``without`` (an index that stands in the folder).

    Attributes:
        passed: after :meth:`files`, the folders that were not entered, and why.
        skipped: after :meth:`texts`, the files that are no text, and why.
        unread: files and folders that are there, but of which the system says nothing now.
    """

    root: Path
    without: Path | None = None
    passed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    unread: set[str] = field(default_factory=set)

    def files(self) -> list[Path]:
        """All files, in the order of their names.

        Raises:
            ValueError: there is no such folder, no file in it, or it cannot be read.
        """
        if not self.root.is_dir():
            raise ValueError(f"{self.root} is no folder; name one that holds the documents")
        out = []
        for at, folders, names in os.walk(self.root, onerror=self._closed):
            folders[:] = sorted(d for d in folders if not d.startswith(".") and self._entered(Path(at, d)))
            out += [Path(at, n) for n in sorted(names) if not n.startswith(".")]
        if not out:
            closed = f" (not entered: {', '.join(f'{k}, {v}' for k, v in self.passed.items())})" if self.passed else ""
            raise ValueError(f"{self.root} holds no files{closed}; nothing to index")
        return out

    def texts(self, files: Iterable[Path]) -> Iterator[Text]:
        """The files that can be read as text."""
        for file in files:
            name = self._name(file)
            try:
                text = _read(file, name)
            except OSError as problem:
                self.unread.add(name)
                self.skipped[_shown(name)] = str(problem.strerror)
            except _NoText as problem:
                self.skipped[_shown(name)] = str(problem)
            else:
                self.skipped.pop(_shown(name), None)
                yield text

    def gone(self, name: str) -> bool:
        """Whether a file that is not among the texts is no longer there, as far as can be told."""
        return not self.unread.intersection((name, *(p.as_posix() for p in PurePosixPath(name).parents)))

    def _entered(self, folder: Path) -> bool:
        if self.without is not None and folder.resolve() == self.without.resolve():
            return False
        if folder.is_symlink():
            self.passed[f"{_shown(self._name(folder))}/"] = "a link to a folder"
            return False
        return True

    def _closed(self, problem: OSError) -> None:
        folder = Path(problem.filename)
        if folder == self.root:
            raise ValueError(f"{folder} cannot be read: {problem.strerror}") from problem
        self.unread.add(self._name(folder))
        self.passed[f"{_shown(self._name(folder))}/"] = str(problem.strerror)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


class _NoText(Exception):
    """A file that is not indexed, and why."""


def _read(file: Path, name: str) -> Text:
    if not _sayable(name):
        raise _NoText("its name cannot be shown")
    if not file.is_file():
        raise _NoText("not a regular file")
    if file.stat().st_size > LARGEST:
        raise _NoText(f"larger than {LARGEST >> 20} MiB")
    data = file.read_bytes()
    if b"\0" in data:
        raise _NoText("binary")
    suffix = file.suffix.lower()
    try:
        text = Text(name, data.decode("utf-8-sig"), {"kind": FILE, "suffix": suffix}, suffix in PAGES)
    except UnicodeDecodeError as problem:
        raise _NoText(f"not UTF-8 (byte {problem.start})") from problem
    if not text.plain.strip():
        raise _NoText("no text in it")
    return text


def _sayable(name: str) -> bool:
    """Without line breaks, other control characters, and bytes that are no UTF-8."""
    return not any(category(c) in ("Cc", "Cs") for c in name)


def _shown(name: str) -> str:
    return name if _sayable(name) else ascii(name)[1:-1]
