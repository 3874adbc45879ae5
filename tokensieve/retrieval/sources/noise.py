"""Noise: what is in files and answers no question: keys, lock files, data as text, minified code."""

from __future__ import annotations

import re
from dataclasses import replace

from tokensieve.retrieval.sources.layout import Layout, Span, Unit

LOCKS = frozenset({
    "package-lock.json", "npm-shrinkwrap.json", "yarn.lock", "pnpm-lock.yaml", "bun.lock", "cargo.lock",
    "poetry.lock", "uv.lock", "pdm.lock", "pipfile.lock", "gemfile.lock", "composer.lock", "go.sum", "flake.lock",
    "mix.lock", "pubspec.lock", "packages.lock.json",
})  # fmt: skip
MADE = (".min.js", ".min.css", ".map", ".svg")
"""Ends of names of files that are made from others, or are drawings."""
HOLES = "lines of base64, keys or minified code"
BASE64 = re.compile(r"(?<![A-Za-z0-9+/])[A-Za-z0-9+/_-]{160,}+={0,2}")
ARMOUR = re.compile(r"-----BEGIN [A-Z0-9 ]+-----.*?(?:-----END [A-Z0-9 ]+-----|\Z)", re.S)
LONG, BLANKS = 1500, 0.03
"""Characters of a line, and the share of blanks in it, below which no one has written it by hand."""
LEAST, LETTERS = 2000, 0.15
"""Characters of a file, and the share of letters in it, below which it is data."""


def refused(name: str, source: str) -> str | None:
    """Why a file is no document; None for one that is."""
    low = name.rpartition("/")[2].lower()
    if low in LOCKS:
        return "a lock file"
    if low.endswith(MADE):
        return "a drawing" if low.endswith(".svg") else "made from other files"
    dense = sum(not c.isspace() for c in source)
    if dense > LEAST and sum(c.isalpha() for c in source) < LETTERS * dense:
        return "numbers and signs, hardly a letter"
    return None


def without(layout: Layout) -> Layout:
    """A text without what nobody reads: base64, armoured data, lines of minified code."""
    holes = sorted(_holes(layout))
    if not holes:
        return layout
    units = [part for unit in layout.units for part in _outside(unit, holes)]
    count = {HOLES: len(holes)}
    return replace(layout, units=units, left_out={**layout.left_out, **count})


def _holes(layout: Layout) -> list[Span]:
    text = layout.text
    out = [m.span() for m in ARMOUR.finditer(text)] + [m.span() for m in BASE64.finditer(text)]
    start = 0
    while start < len(text):
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        if end - start > LONG and text.count(" ", start, end) < BLANKS * (end - start) and text[start:end].isascii():
            out.append((start, end))
        start = end + 1
    return out


def _outside(unit: Unit, holes: list[Span]) -> list[Unit]:
    """What is left of a part."""
    out, start = [], unit.start
    for a, b in holes:
        if b <= start or a >= unit.end:
            continue
        if a > start:
            out.append(replace(unit, start=start, end=a))
        start = max(start, b)
    if start < unit.end:
        out.append(replace(unit, start=start))
    return out
