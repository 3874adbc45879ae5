"""Notebook: the cells of a Jupyter notebook, and where in its JSON each of their characters stands."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from tokensieve.retrieval.sources.layout import Layout, Span, Unit, joined
from tokensieve.retrieval.sources.readers.code import code
from tokensieve.retrieval.sources.readers.prose import markdown, shifted

TOKEN = re.compile(r'\s*(?:("(?:[^"\\]|\\.)*+")|([{}\[\],:])|([^\s{}\[\],:"]+))')
ESCAPE = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\.")
Held = Any
"""A value of JSON; strings as their places in the source, quotes left out."""


def notebook(source: str) -> Layout:
    """The text and code cells; outputs, which are often images as text, are left out.

    Raises:
        ValueError: it is no notebook.
    """
    held = _parse(source)
    cells = held.get("cells") if isinstance(held, dict) else None
    if cells is None and isinstance(held, dict):  # the third format
        sheets: Any = held.get("worksheets") or []
        cells = [c for sheet in sheets for c in sheet["cells"]]
    if not isinstance(cells, list):
        raise ValueError("it holds no cells")
    parts: list[tuple[str, Span]] = []
    units: list[Unit] = []
    length = outputs = 0
    for number, cell in enumerate(cells, 1):
        if not isinstance(cell, dict):
            continue
        outputs += bool(cell.get("outputs"))
        kind = source[slice(*(cell.get("cell_type") or (0, 0)))]
        lines = cell.get("source", cell.get("input", ()))
        several = [lines] if isinstance(lines, tuple) else lines if isinstance(lines, list) else []
        own = [part for line in several if isinstance(line, tuple) for part in _said(source, line)]
        text = "".join(t for t, _ in own)
        if not text.strip():
            continue
        layout = (code if kind == "code" else markdown)(text)
        # Below the headings of the text before it.
        found = [Unit(u.start, u.end, "code") for u in layout.units] if kind == "code" else layout.units
        units += shifted(found, length, f"cell {number}")
        at = own[-1][1][1]
        parts += [*own, ("\n\n", (at, at))]
        length += len(text) + 2
    text, starts, sources = joined(parts)
    return Layout(text, units, {"outputs": outputs} if outputs else {}, starts, sources)


def _said(source: str, line: Span) -> Iterator[tuple[str, Span]]:
    """The characters of a string, in pieces that stand in the source as they are, and escapes."""
    start, stop = line
    for found in ESCAPE.finditer(source, start, stop):
        if found.start() > start:
            yield source[start : found.start()], (start, found.start())
        said = json.loads(f'"{found.group()}"')
        # Half of a pair is no character.
        yield said if not "\ud800" <= said <= "\udfff" else "\N{REPLACEMENT CHARACTER}", found.span()
        start = found.end()
    if stop > start:
        yield source[start:stop], (start, stop)


def _parse(source: str) -> Held:
    """JSON with places for strings.

    Raises:
        ValueError: it is none.
    """
    stack: list[Any] = []
    keys: list[str | None] = []
    key: str | None = None
    root: Any = None
    place = 1 if source.startswith("\ufeff") else 0
    while found := TOKEN.match(source, place):
        place = found.end()
        string, sign, _ = found.groups()
        if sign in ("}", "]"):
            if not stack:
                raise ValueError("its brackets do not close")
            root = stack.pop()
            key = keys.pop()
            continue
        if sign in (",", ":"):
            continue
        value: Any = None
        if string is not None:
            a, b = found.span(1)
            value = (a + 1, b - 1)
            if stack and isinstance(stack[-1], dict) and source[b : b + 20].lstrip()[:1] == ":":
                key = source[a + 1 : b - 1]
                continue
        elif sign:
            value = {} if sign == "{" else []
        if stack:
            top = stack[-1]
            if isinstance(top, list):
                top.append(value)
            elif key is not None:
                top[key] = value
        if sign:
            stack.append(value)
            keys.append(key)
    if stack or source[place:].strip():
        raise ValueError("it is no JSON")
    return root
