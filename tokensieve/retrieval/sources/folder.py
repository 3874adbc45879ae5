"""Folder: the texts of a folder's files, one document each."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from unicodedata import category

from tokensieve.retrieval.sources import noise
from tokensieve.retrieval.sources.documents import NoText, kind_of, text_of
from tokensieve.retrieval.sources.readers import reader_of
from tokensieve.retrieval.sources.texts import Text

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

FILE = "file"
LARGEST = 64 << 20
"""Bytes of a file; larger ones are data more often than text."""
PASSED = {"node_modules": "installed packages", "__pycache__": "compiled code"}
"""Folders that hold nobody's documents."""
IGNORED = ".gitignore"
MARKS = ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"),
         (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip
SURE, GUESSED = 0.02, 1 << 20
"""Mess that an encoding may leave in a text (a share, by charset-normalizer), and the bytes it is told by."""


@dataclass
class Folder:
    """Texts below a folder: Markdown, reStructuredText, HTML, notebooks, code, documents, and all else that is text.

    Names that begin with a dot are passed over, and so are ``without`` (an index that stands in the folder) and what files
    named ``.gitignore`` say.

    Attributes:
        include, exclude: patterns as in ``.gitignore``; where there are patterns of the first kind, other files are passed over.
        passed: after :meth:`files`, the folders that were not entered, and why.
        skipped: after :meth:`texts`, the files that are no text, and why.
        left_out: after :meth:`texts`, what was left out of files that were read, and why.
        unread: files and folders that are there, but of which the system says nothing now.
    """

    root: Path
    without: Path | None = None
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    passed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    unread: set[str] = field(default_factory=set)

    def files(self) -> list[Path]:
        """All files, in the order of their names.

        Raises:
            ValueError: there is no such folder, no file in it, or it cannot be read.
        """
        if not self.root.is_dir():
            raise ValueError(f"{self.root} is no folder; name one that holds the documents")
        wanted, unwanted = _spec(self.include, "include"), _spec(self.exclude, "exclude")
        ignored: dict[str, GitIgnoreSpec] = {}
        out, count = [], 0
        for at, folders, names in os.walk(self.root, onerror=self._closed):
            here = Path(at)
            if IGNORED in names:
                ignored[self._name(here)] = _ignoring(here / IGNORED)

            def passed(path: Path, folder: bool) -> bool:
                name = self._name(path) + "/" * folder
                return unwanted.match_file(name) or _ignored(name, ignored)

            kept = []
            for name in sorted(folders):
                if name.startswith(".") or not self._entered(here / name):
                    continue
                if passed(here / name, True):
                    self.passed[f"{_shown(self._name(here / name))}/"] = f"by {IGNORED} or --exclude"
                    continue
                kept.append(name)
            folders[:] = kept
            for name in sorted(names):
                if name.startswith("."):
                    continue
                if passed(here / name, False) or (self.include and not wanted.match_file(self._name(here / name))):
                    count += 1
                    continue
                out.append(here / name)
        if count:
            self.passed[f"{count:,} files"] = f"by {IGNORED}, --include or --exclude"
        if not out:
            closed = f" (not entered: {', '.join(f'{k}, {v}' for k, v in self.passed.items())})" if self.passed else ""
            raise ValueError(f"{self.root} holds no files{closed}; nothing to index")
        return out

    def texts(self, files: Iterable[Path]) -> Iterator[Text]:
        """The files that can be read as text; no file that cannot ends it."""
        for file in files:
            name = self._name(file)
            try:
                text = _read(file, name)
            except OSError as problem:
                self.unread.add(name)
                self.skipped[_shown(name)] = str(problem.strerror or problem)
            except NoText as problem:
                self.skipped[_shown(name)] = str(problem)
            except Exception as problem:  # of a reader; the next file is another matter
                self.skipped[_shown(name)] = f"cannot be read ({type(problem).__name__}: {problem})"[:300]
            else:
                self.skipped.pop(_shown(name), None)
                if text.layout.left_out:
                    self.left_out[name] = ", ".join(f"{n:,} {what}" for what, n in text.layout.left_out.items())
                yield text

    def gone(self, name: str) -> bool:
        """Whether a file that is not among the texts is no longer there, as far as can be told."""
        return not self.unread.intersection((name, *(p.as_posix() for p in PurePosixPath(name).parents)))

    def _entered(self, folder: Path) -> bool:
        if self.without is not None and folder.resolve() == self.without.resolve():
            return False
        why = "a link to a folder" if folder.is_symlink() else PASSED.get(folder.name)
        if why is not None:
            self.passed[f"{_shown(self._name(folder))}/"] = why
        return why is None

    def _closed(self, problem: OSError) -> None:
        folder = Path(problem.filename)
        if folder == self.root:
            raise ValueError(f"{folder} cannot be read: {problem.strerror}") from problem
        if not folder.exists():  # it went while it was being read
            return
        self.unread.add(self._name(folder))
        self.passed[f"{_shown(self._name(folder))}/"] = str(problem.strerror)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def _spec(patterns: Sequence[str], option: str) -> GitIgnoreSpec:
    try:
        return _patterns(patterns)
    except ValueError as problem:
        raise ValueError(f"--{option} {' '.join(patterns)}: {problem}; patterns are those of .gitignore") from problem


def _ignoring(file: Path) -> GitIgnoreSpec:
    try:
        return _patterns(file.read_text(encoding="utf-8", errors="replace").splitlines())
    except (OSError, ValueError):
        return _patterns([])


def _patterns(lines: Iterable[str]) -> GitIgnoreSpec:
    from pathspec import GitIgnoreSpec

    return GitIgnoreSpec.from_lines(lines)


def _ignored(name: str, ignored: dict[str, GitIgnoreSpec]) -> bool:
    """By the patterns of a folder above that speak of it; those of the nearest count."""
    for parent in PurePosixPath(name).parents:
        spec = ignored.get(parent.as_posix())
        if spec is None:
            continue
        said = spec.check_file(name[len(parent.as_posix()) + 1 :] if parent.as_posix() != "." else name)
        if said.include is not None:
            return said.include
    return False


def _read(file: Path, name: str) -> Text:
    if not _sayable(name):
        raise NoText("its name cannot be shown; rename it")
    if not file.is_file():
        if not file.exists() and not file.is_symlink():
            raise FileNotFoundError(2, "it went while the folder was read")
        raise NoText("not a regular file")
    if file.stat().st_size > LARGEST:
        raise NoText(f"larger than {LARGEST >> 20} MiB")
    return text_of_file(file.read_bytes(), name, file.suffix, file=True)


def text_of_file(data: bytes, name: str, suffix: str, file: bool = False) -> Text:
    """The text of a file's bytes.

    Args:
        name: what it is called.
        file: whether it mirrors a file of a folder, and goes when that goes.

    Raises:
        NoText: there is none that can be read; it says why, and what to do.
    """
    about = {"kind": FILE, "suffix": suffix.lower()}
    kind = kind_of(data)
    if kind is not None:
        source, reader = text_of(data, kind)
        text = Text(name, source, about, reader, file=file, extracted=True)
    else:
        source = _decoded(data)
        why = noise.refused(name, source)
        if why is not None:
            raise NoText(why)
        text = Text(name, source, about, reader_of(name, source), file=file)
    if not any(text.plain[u.start : u.end].strip() for u in text.layout.units):
        raise NoText(
            "nothing in it but keys, base64 or minified code"
            if noise.HOLES in text.layout.left_out
            else "no text in it"
        )
    return text


def _decoded(data: bytes) -> str:
    for mark, encoding in MARKS:
        if data.startswith(mark):
            try:
                return data.decode(encoding)
            except UnicodeDecodeError as problem:
                raise NoText(f"not {encoding.upper()}, of which it has the mark (byte {problem.start})") from problem
    if b"\0" in data:
        raise NoText("binary")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as problem:
        from charset_normalizer import from_bytes

        found = [m for m in from_bytes(data[:GUESSED]) if m.chaos <= SURE]
        said = {str(m) for m in found}
        if len(said) == 1 or (found and found[0].coherence >= 0.5):
            try:
                return data.decode(found[0].encoding)
            except UnicodeDecodeError:
                pass
        raise NoText(
            f"not UTF-8 (byte {problem.start}), and no other encoding is certain; save it as UTF-8"
        ) from problem


def _sayable(name: str) -> bool:
    """Without line breaks, other control characters, and bytes that are no UTF-8."""
    return not any(category(c) in ("Cc", "Cs") for c in name)


def _shown(name: str) -> str:
    return name if _sayable(name) else ascii(name)[1:-1]
