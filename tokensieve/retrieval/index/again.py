"""Again: the texts of one library in another, by another encoder or in another format, as they were cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokensieve.retrieval.index import marks, put
from tokensieve.retrieval.index.library import Library
from tokensieve.retrieval.index.put import Row


def reindex(
    source: Library, target: Library, step: Callable[[int, int, int], None] = lambda done, of, passages: None
) -> int:
    """Put all passages of a library into another one, encoded anew; the files are not needed.

    Interrupted, it goes on from there when called again. Passages that are damaged are passed over.

    Args:
        step: called with the texts done, their number, and the passages encoded since the last call.

    Returns:
        How many passages the target holds.
    """
    names = sorted(source.names())
    rows: list[Row] = []
    for done, name in enumerate(names, 1):
        held = [m for m in source.index.metadata(source._of(name)) if m]
        if not _there(target, name, held):
            rows += [_row(f"{name}#{i}", m) for i, m in enumerate(held)]
        if len(rows) >= put.COMMIT or done == len(names):
            target._commit(rows, lambda passages, done=done: step(done, len(names), passages))  # type: ignore[misc]
            rows = []
        step(done, len(names), 0)
    target.tune()
    return len(target)


def _there(target: Library, name: str, held: list[dict[str, Any]]) -> bool:
    ids = [f"{name}#{i}" for i in range(len(held))]
    found = target.index.metadata(ids)
    same = all(
        a and a.get("digest") == b.get("digest") and a.get("text") == b["text"]
        for a, b in zip(found, held, strict=True)
    )
    return same and target.index.whole(ids)


def _row(id: str, held: dict[str, Any]) -> Row:
    note = {k: v for k, v in held.items() if k != "spans"}
    note |= {marks.FILE: True} if marks.mirrored(held) else {}
    context = note.setdefault(marks.CONTEXT, "")
    said = f"{context}\n{held['text']}" if context else held["text"]
    return Row(id, said, len(said) - len(held["text"]), note)
