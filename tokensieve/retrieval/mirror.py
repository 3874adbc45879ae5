"""Mirror: make a library hold what a folder holds; only what has changed is encoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tokensieve.retrieval.folder import FILE, Folder, Text
from tokensieve.retrieval.library import Library


@dataclass
class Report:
    """What a mirroring did: files by what became of them, and the passages that the library now holds."""

    files: int = 0
    written: int = 0
    unchanged: int = 0
    removed: int = 0
    passages: int = 0
    skipped: dict[str, str] = field(default_factory=dict)


def mirror(
    library: Library, root: Path, step: Callable[[int, int, int], None] = lambda files, of, passages: None
) -> Report:
    """Files that are new or changed are written, those that are gone are removed; texts that came from elsewhere stay.

    Interrupted, it goes on from there when called again.

    Args:
        step: called with the files read, their number, and the passages encoded since the last call.

    Raises:
        ValueError: no such folder, an empty one, or one that shares no file with what the library mirrors.
    """
    folder = Folder(root, without=library.index.folder)
    files = folder.files()
    report = Report(files=len(files))
    held = _held(library)
    seen: set[str] = set()

    def texts() -> Iterator[Text]:
        for number, text in enumerate(folder.texts(files), 1):
            seen.add(text.name)
            step(number + len(folder.skipped), len(files), 0)
            yield text

    names = {f.relative_to(root).as_posix() for f in files}
    if held and not held & names:
        raise ValueError(
            f"{library.index.folder} mirrors another folder than {root} ({min(held)} is not in it); choose another --out"
        )
    library.count(folder.texts(files))
    report.written = library.put(texts(), lambda passages: step(len(seen) + len(folder.skipped), len(files), passages))
    report.skipped = dict(folder.skipped)
    if not seen:
        raise ValueError(f"{root} holds no text: {_named(report.skipped)}")
    report.unchanged = len(seen) - report.written
    report.removed = library.remove(held - seen)
    report.passages = len(library)
    plan = library.index.plan
    if plan is None or report.passages > 2 * plan["documents"]:
        library.index.tune()
    return report


def _held(library: Library) -> set[str]:
    names = sorted(library.names())
    first = library.index.metadata([f"{n}#0" for n in names])
    return {n for n, m in zip(names, first, strict=True) if m and m.get("kind") == FILE}


def _named(skipped: dict[str, str], most: int = 5) -> str:
    shown = [f"{name} ({why})" for name, why in list(skipped.items())[:most]]
    return ", ".join(shown) + (f" and {len(skipped) - most} more" if len(skipped) > most else "")
