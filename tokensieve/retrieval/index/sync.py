"""Mirror: make a library hold what a folder holds; only what has changed is encoded."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokensieve.retrieval.index import marks
from tokensieve.retrieval.index.library import Library
from tokensieve.retrieval.sources.folder import Folder
from tokensieve.retrieval.sources.texts import Text

COUNTED = ("files", "written", "unchanged", "removed", "passages", "tokens")
STRANGE = 0.2
"""The share of tokens without a word from which on a file is named."""


@dataclass
class SyncReport:
    """What a mirroring did: files by what became of them, and the passages that the library now holds.

    Attributes:
        skipped: files that are no text, and folders that were not entered, and why.
        left_out: what was left out of files that were read, and why.
        unread: files of which the encoder has no word for a fifth of the tokens or more, and the share of them.
        repaired: what was damaged, by name, and no longer is.
        tokens: how many were encoded.
    """

    files: int = 0
    written: int = 0
    unchanged: int = 0
    removed: int = 0
    passages: int = 0
    tokens: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    unread: dict[str, float] = field(default_factory=dict)
    repaired: list[str] = field(default_factory=list)

    def __add__(self, other: SyncReport) -> SyncReport:
        sums: dict[str, Any] = {k: getattr(self, k) + getattr(other, k) for k in (*COUNTED, "repaired")}
        both: dict[str, Any] = {k: getattr(self, k) | getattr(other, k) for k in ("skipped", "left_out", "unread")}
        return SyncReport(**sums, **both)


def mirror(
    library: Library, root: Path, step: Callable[[int, int, int], None] = lambda files, of, passages: None
) -> SyncReport:
    """Files that are new or changed are written, those that are gone are removed; texts that came from elsewhere stay, and
    so do those of files that cannot be read now.

    Interrupted, it goes on from there when called again.

    Args:
        step: called with the files read, their number, and the passages encoded since the last call.

    Raises:
        ValueError: no such folder, an empty one, or one that shares no file with what the library mirrors.
        Locked: another process writes the library.
    """
    library.index.begin()
    folder = Folder(root, library.index.folder, library.recipe.include, library.recipe.exclude)
    files = folder.files()
    refuse_other(indexed_names(library), {f.relative_to(root).as_posix() for f in files}, library.index.folder, root)
    refuse_empty(folder, files)
    library.count(folder.texts(files))
    return bring(library, folder, files, step)


def bring(
    library: Library, folder: Folder, files: list[Path],
    step: Callable[[int, int, int], None] = lambda files, of, passages: None,
) -> SyncReport:  # fmt: skip
    """Make a library hold the texts of these files of a folder, and of no others."""
    before = indexed_names(library)
    seen: set[str] = set()
    done = 0

    def each() -> Iterator[Path]:
        nonlocal done
        for file in files:
            yield file
            done += 1
            step(done, len(files), 0)

    def texts() -> Iterator[Text]:
        for text in folder.texts(each()):
            seen.add(text.name)
            yield text

    # What is damaged is not current; what is not is read here once, and not again.
    damaged = library.index.verify()
    library.read.clear()
    library.unknown.clear()
    written = library.put(texts(), lambda passages: step(done, len(files), passages))
    removed = library.remove(name for name in before - seen if folder.gone(name))
    # What cannot be read now might stand in what is damaged.
    if not folder.unread and (damaged or library.index.dated):
        library.index.mend()
    left = library.index.damaged
    repaired = [part for part in damaged if part not in left]
    plan = library.index.plan
    if plan is None or "depths" not in plan or len(library) > 2 * plan["documents"]:
        library.tune()
    strange = {name: n / library.read[name] for name, n in library.unknown.items() if n >= STRANGE * library.read[name]}
    return SyncReport(
        len(files), written, len(seen) - written, removed, len(library), sum(library.read.values()),
        folder.passed | folder.skipped, folder.left_out, strange, repaired,
    )  # fmt: skip


def indexed_names(library: Library) -> set[str]:
    """The names of a library's texts that came from files."""
    names = sorted(library.names())
    first = library.index.metadata([f"{n}#0" for n in names])
    return {n for n, m in zip(names, first, strict=True) if m and marks.mirrored(m)}


def refuse_other(indexed: Iterable[str], names: Collection[str], out: Path, root: Path) -> None:
    """Refuse to replace all that is held: none of it is in the folder."""
    first = None
    for name in indexed:
        if name in names:
            return
        first = first or name
    if first is not None:
        raise ValueError(f"{out} mirrors another folder than {root} ({first} is not in it); choose another --out")


def refuse_empty(folder: Folder, files: list[Path]) -> None:
    """Refuse a folder in which no file is text."""
    if next(folder.texts(files), None) is None:
        raise ValueError(f"{folder.root} holds no text: {_named(folder.passed | folder.skipped)}")


def _named(skipped: dict[str, str], most: int = 5) -> str:
    shown = [f"{name} ({why})" for name, why in list(skipped.items())[:most]]
    return ", ".join(shown) + (f" and {len(skipped) - most} more" if len(skipped) > most else "")
