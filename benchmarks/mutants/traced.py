"""Traced: which lines of methods and parts the checks of each method run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def lines(root: str, folders: tuple[str, ...]) -> Iterator[set[tuple[str, int]]]:
    """Collects (file, line) of every line of those folders that runs inside."""
    seen: set[tuple[str, int]] = set()
    known: dict[str, str] = {}

    def short(path: str) -> str:
        if path not in known:
            name = path.removeprefix(root + "/")
            known[path] = name if name.startswith(folders) else ""
        return known[path]

    def enter(frame: FrameType, event: str, arg: Any) -> Any:
        file = short(frame.f_code.co_filename)
        if not file:
            return None

        def line(frame: FrameType, event: str, arg: Any) -> Any:
            seen.add((file, frame.f_lineno))
            return line

        seen.add((file, frame.f_lineno))
        return line

    sys.settrace(enter)
    try:
        yield seen
    finally:
        sys.settrace(None)
