"""Passages: a text cut where a reader would, into pieces that are small enough for an encoder.

Every place at which a text can be cut has a cost (little before a heading, more between sentences, very much behind a heading or
a line that ends in ":"), and so has every passage (more where it is short or over-long); the passages are those of the least sum,
found by dynamic programming.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tokensieve.retrieval.sources.layout import Layout, Span, Unit

MOST = 700
"""Characters of a passage: about 200 tokens of prose or of code."""
STRETCH = 1.3
"""How far over that a passage may go where all cuts are worse."""
LEAST = 200
"""Characters below which a passage is a crumb."""
BLANK = re.compile(r"\n[^\S\n]*\n")
SENTENCE = re.compile(r"(?<=[.!?;])\s+|(?<=[。！？；])\s*")
WORD = re.compile(r"\s+")
OPEN = re.compile(r"[:：]\W*$")
"""The end of what promises more."""

PASSAGE, CRUMB, LONG, EVEN = 3.0, 8.0, 40.0, 0.5
"""Costs of a passage; of one of no characters; of one of twice the most; of its length, squared, so that lengths are even."""
PROMISE = 200.0
"""Behind a heading, the head of a table, or a line that ends in a colon."""
FENCE = 60.0
"""In a fenced block that would fit."""
BEFORE = {"text": 1.0, "item": 1.5, "fence": 2.5, "code": 2.0, "head": 1.0, "row": 3.0}
APART = float("-inf")
"""Where something between two parts was left out, or a page ends: no passage holds both."""
LINE, SENTENCES, MIDDLE, WORDS, LETTERS = 6.0, 5.0, 15.0, 30.0, 60.0
"""At other places: between lines of one part, sentences, lines within a sentence, words, characters."""


@dataclass(frozen=True)
class Atom:
    """What is never cut, and the cost of a cut before it."""

    start: int
    end: int
    before: float
    unit: int


@dataclass(frozen=True)
class Passage:
    """A stretch of a text; what stands above it (headings, the head of its table); and its place, in words, if it is no line."""

    span: Span
    context: str
    place: str


def is_text(value: Any) -> bool:
    """Whether it is a string that can be written: bytes that are no UTF-8 come from a terminal or a file's name as halves of
    surrogate pairs, which cannot."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def cut(layout: Layout, most: int = MOST, within: Span | None = None) -> list[Span]:
    """Spans of about ``most`` characters, never over a third more, that hold everything but blanks between them.

    Args:
        within: cut these characters only.
    """
    a, b = within or (0, len(layout.text))
    atoms = list(_atoms(layout, most, a, b))
    return [_indented(layout.text, atoms[i].start, atoms[j - 1].end) for i, j in _cheapest(layout.text, atoms, most)]


def overlapping(layout: Layout, spans: Sequence[Span], overlap: int) -> list[Span]:
    """Spans that begin up to ``overlap`` characters earlier, at a line or a sentence of the passage before."""
    out = list(spans[:1])
    for before, (a, b) in pairwise(spans):
        low = max(a - overlap, before[0])
        begins = [m.end() for m in re.finditer(r"\n+|(?<=[.!?;])\s+", layout.text[low:a])]
        out.append((low + begins[0] if begins and begins[0] < a - low else a, b))
    return out


def above(layout: Layout, spans: Sequence[Span], most: int) -> Iterator[Passage]:
    """Passages with what stands above them, of at most ``most`` characters: as many of the nearest headings as fit."""
    path: list[tuple[int, str]] = []
    head, place, i = "", "", 0
    units = layout.units
    for span in spans:
        while i < len(units) and units[i].start <= span[0]:
            unit = units[i]
            if unit.end <= span[0]:
                place = unit.place
                head = _enter(layout.text, unit, path, head)
            else:
                place = unit.place
                break
            i += 1
        first = units[i] if i < len(units) else units[-1]
        level = first.level or (99 if first.kind != "heading" else 1)
        names = [name for depth, name in path if depth < level]
        while names and sum(map(len, names)) + 3 * len(names) > most:
            names.pop(0)
        over = [" > ".join(names)] if names else []
        if head and first.kind == "row" and len(head) <= most:
            over.append(head)
        yield Passage(span, "\n".join(over), first.place or place)


def _enter(text: str, unit: Unit, path: list[tuple[int, str]], head: str) -> str:
    """Pass a part: keep the path of headings, and return the head of the table that goes on."""
    if unit.kind == "heading":
        while path and path[-1][0] >= unit.level:
            path.pop()
        path.append((unit.level, title(text[unit.start : unit.end])))
    if unit.kind == "head":
        return text[unit.start : unit.end].strip()
    return head if unit.kind == "row" else ""


def title(heading: str) -> str:
    """The words of a heading."""
    line = next((one for one in heading.strip().split("\n") if any(c.isalnum() for c in one)), "")
    return line.strip().lstrip("#").rstrip("#:{ ").strip()


def _atoms(layout: Layout, most: int, a: int, b: int) -> Iterator[Atom]:
    text, promised, behind = layout.text, False, a
    first_unit = max(bisect_right(layout.units, a, key=lambda unit: unit.start) - 1, 0)
    for number, unit in enumerate(layout.units[first_unit:], first_unit):
        if unit.start >= b:
            break
        start, end = max(unit.start, a), min(unit.end, b)
        if start >= end or not text[start:end].strip():
            continue
        before = 0.2 * unit.level - 2.5 if unit.kind == "heading" else BEFORE[unit.kind]
        for first, last, inner in _pieces(text, unit, start, end, most):
            cost = PROMISE if promised else (before if first == start else inner)
            between = text[behind:first]
            yield Atom(first, last, APART if between.strip() or "\f" in between else cost, number)
            behind = last
            promised = unit.kind in ("heading", "head") or OPEN.search(text, max(first, last - 20), last) is not None


def _pieces(text: str, unit: Unit, a: int, b: int, most: int) -> Iterator[tuple[int, int, float]]:
    """A part in pieces of at most half a passage, each with the cost of a cut before it."""
    whole = unit.kind in ("fence", "code", "heading", "head", "item")
    fits = b - a <= most
    short = max(most // 2, 1)
    if b - a <= min(short, LEAST):
        yield a, b, LINE
        return
    lines = list(_split(text, a, b, re.compile(r"\n")))
    blank = False
    for first, last in lines:
        if not text[first:last].strip():
            blank = True
            continue
        cost = FENCE if whole and fits else (3.0 if blank else LINE)
        if cost == LINE and unit.kind in ("text", "item") and text[first : first + 1].islower():
            cost = SENTENCES if text[a:first].rstrip()[-1:] in ".!?;" else MIDDLE
        blank = False
        if last - first <= short:
            yield first, last, cost
            continue
        for one, (c, d) in enumerate(_split(text, first, last, SENTENCE)):
            for two, (e, f) in enumerate(_split(text, c, d, WORD) if d - c > short else [(c, d)]):
                for three, g in enumerate(range(e, f, short)):
                    inner = LETTERS if three else (WORDS if two else (SENTENCES if one else cost))
                    yield g, min(g + short, f), inner


def _split(text: str, a: int, b: int, pattern: re.Pattern[str]) -> Iterator[Span]:
    start = a
    for gap in pattern.finditer(text, a, b):
        if gap.start() > start:
            yield start, gap.start()
        start = gap.end()
    if b > start:
        yield start, b


def _cheapest(text: str, atoms: Sequence[Atom], most: int) -> list[tuple[int, int]]:
    """The runs of atoms that cost least."""
    best, came = [0.0], [0]
    high = most * STRETCH
    for j, last in enumerate(atoms):
        least, where = float("inf"), j
        for i in range(j, -1, -1):
            length = last.end - atoms[i].start
            if length > high and i < j:
                break
            apart = atoms[i].before == APART
            cost = best[i] + (atoms[i].before if i and not apart else 0.0) + _price(length, most)
            if cost < least:
                least, where = cost, i
            if apart:
                break
        best.append(least)
        came.append(where)
    out, j = [], len(atoms)
    while j:
        out.append((came[j], j))
        j = came[j]
    return out[::-1]


def _price(length: int, most: int) -> float:
    least = LEAST * most / MOST
    price = PASSAGE + EVEN * (length / most) ** 2
    if length < least:
        price += CRUMB * (1 - length / least)
    elif length > most:
        price += LONG * (length / most - 1)
    return price


def _indented(text: str, a: int, b: int) -> Span:
    """A span with the indentation of its first line, without blanks at its end."""
    while a < b and text[a].isspace():
        a += 1
    start = text.rfind("\n", 0, a) + 1
    if not text[start:a].strip():
        a = start
    return a, b - (len(text[a:b]) - len(text[a:b].rstrip()))
