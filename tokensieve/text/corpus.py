"""Text from files and folders: what is read, what is passed over and why, and its digest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

PIECE = 1 << 20
"""Characters of a piece at most: an encoder holds a hundred bytes and more for each token of what it is given at once."""


@dataclass(frozen=True)
class Document:
    """A text.

    Attributes:
        name: the path it was read from, as given.
        text: it, decoded from UTF-8 as it stands: line ends and NUL bytes stay.
        raw: whether its characters are those of Latin-1 for raw bytes.
    """

    name: str
    text: str
    raw: bool = False

    @property
    def size(self) -> int:
        """Bytes, of UTF-8 where it is text."""
        return len(self.text) if self.raw else len(self.text.encode())


@dataclass(frozen=True)
class Corpus:
    """Documents, and what could not be one.

    Attributes:
        documents: in the order of their paths.
        skipped: why each other file was passed over, by name.
    """

    documents: tuple[Document, ...]
    skipped: dict[str, str]

    @property
    def size(self) -> int:
        """Bytes of all documents."""
        return sum(d.size for d in self.documents)

    @property
    def digest(self) -> str:
        """SHA-256 of the documents' texts in their order; names do not count."""
        out = hashlib.sha256()
        for document in self.documents:
            data = document.text.encode()
            out.update(len(data).to_bytes(8, "little"))
            out.update(data)
        return out.hexdigest()


def read(paths: Sequence[str | Path]) -> Corpus:
    """The texts of files, and of all files in folders but hidden ones.

    Raises:
        ValueError: a path does not exist, a file named by itself is not UTF-8, or nothing but empty files is left.
    """
    documents, skipped = [], {}
    for given in map(Path, paths):
        if not given.exists():
            raise ValueError(f"{given} does not exist; it must be a file of text in UTF-8, or a folder of such files")
        for path in _files(given):
            data = path.read_bytes()
            try:
                text = data.decode()
            except UnicodeDecodeError as problem:
                why = f"not UTF-8 at byte {problem.start:,} ({data[problem.start : problem.end].hex(' ')})"
                if path == given:
                    raise ValueError(f"{path}: {why}; convert it, for example with iconv -t utf-8") from None
                skipped[str(path)] = why
                continue
            if text:
                documents.append(Document(str(path), text))
            else:
                skipped[str(path)] = "empty"
    if not documents:
        reasons = "; ".join(f"{name}: {why}" for name, why in list(skipped.items())[:3])
        raise ValueError(
            f"no text in {', '.join(map(str, paths)) or 'no files'}" + (f" ({reasons})" if reasons else "")
        )
    return Corpus(tuple(documents), skipped)


def read_bytes(paths: Sequence[str | Path]) -> Corpus:
    """As :func:`read`, of any files: each byte is the character of Latin-1 that has its number."""
    documents, skipped = [], {}
    for given in map(Path, paths):
        if not given.exists():
            raise ValueError(f"{given} does not exist; it must be a file, or a folder of files")
        for path in _files(given):
            if data := path.read_bytes():
                documents.append(Document(str(path), data.decode("latin-1"), raw=True))
            else:
                skipped[str(path)] = "empty"
    if not documents:
        raise ValueError(f"no bytes in {', '.join(map(str, paths)) or 'no files'}")
    return Corpus(tuple(documents), skipped)


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    inside = (f for f in path.rglob("*") if f.is_file())
    return sorted(f for f in inside if not any(p.startswith(".") for p in f.relative_to(path).parts))


def pieces(text: str, most: int = PIECE) -> Iterator[str]:
    """A text in pieces of at most so many characters, cut behind a line's end, or before a space, where one is near; in one where
    it is short enough."""
    start = 0
    while len(text) - start > most:
        line, space = (text.rfind(mark, start + most // 2, start + most) for mark in ("\n", " "))
        end = line + 1 if line >= 0 else space if space > start else start + most
        yield text[start:end]
        start = end
    yield text[start:] if start else text


def batches(texts: Iterable[str], most: int = PIECE) -> Iterator[list[str]]:
    """Texts in groups of about so many characters."""
    group, held = [], 0
    for text in texts:
        group.append(text)
        held += len(text)
        if held >= most:
            yield group
            group, held = [], 0
    if group:
        yield group
