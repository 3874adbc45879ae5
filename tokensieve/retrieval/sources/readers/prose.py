"""Prose: Markdown, reStructuredText and plain text as headings, paragraphs, list items, tables and fenced blocks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tokensieve.retrieval.sources.layout import Layout, Span, Unit

LINE = re.compile(r"[^\n]*\n|[^\n]+$")
FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})")
ATX = re.compile(r" {0,3}(#{1,6})[ \t]+\S")
RULE = re.compile(r"([=\-~^\"'*+#.:_`])\1{2,}[ \t]*$")
ITEM = re.compile(r"[ \t]*(?:[-*+•]|\d{1,3}[.)]|\(?[a-zA-Z][.)])[ \t]+\S")
DELIMITER = re.compile(r"[ \t]*\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$")
NUMBERED = re.compile(r"(\d{1,2}(?:\.\d{1,2})*)\.?[ \t]+[^\W\d_].{1,70}$")
CAPITALS = re.compile(r"[A-Z][A-Z0-9 /-]{2,60}$")
"""Section heads of manual pages."""


def markdown(source: str) -> Layout:
    """Markdown: headings with number signs or underlined, fences, tables with bars."""
    return Layout(source, list(_Lines(source, "markdown").units()))


def rst(source: str) -> Layout:
    """reStructuredText: underlined headings, ranked in the order in which their signs appear; blocks behind ``::``."""
    return Layout(source, list(_Lines(source, "rst").units()))


def plain(source: str) -> Layout:
    """Any other text: paragraphs, underlined or numbered headings, capitals above indented text."""
    return Layout(source, list(_Lines(source, "plain").units()))


@dataclass
class _Lines:
    """The lines of a text, read once from top to bottom."""

    text: str
    kind: str
    spans: list[Span] = field(init=False)
    ranks: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        # A mark of the byte order is a character of the source, and none of the text.
        start = 1 if self.text.startswith("\ufeff") else 0
        self.spans = [m.span() for m in LINE.finditer(self.text, start)]

    def line(self, i: int) -> str:
        return self.text[slice(*self.spans[i])].rstrip() if 0 <= i < len(self.spans) else ""

    def units(self) -> Iterator[Unit]:
        i = 0
        promised = False
        while i < len(self.spans):
            if not self.line(i):
                i += 1
                continue
            j, kind, level = self._at(i, promised)
            if kind == "head":
                yield self._unit(i, i + 2, "head")
                for row in range(i + 2, j):
                    yield self._unit(row, row + 1, "row")
            else:
                yield self._unit(i, j, kind, level)
            promised = self.line(j - 1).endswith("::")
            i = j

    def _unit(self, i: int, j: int, kind: str, level: int = 0) -> Unit:
        return Unit(self.spans[i][0], self.spans[j - 1][1], kind, level)  # type: ignore[arg-type]

    def _at(self, i: int, promised: bool) -> tuple[int, str, int]:
        """The end of the part that begins at a line, its kind, and its level."""
        line = self.line(i)
        fence = FENCE.match(line)
        if fence:
            return self._fence(i, fence.group(1)), "fence", 0
        heading = self._heading(i)
        if heading:
            return heading[0], "heading", heading[1]
        if promised and line[0] in " \t":
            return self._while(i, lambda n: not self.line(n) or self.line(n)[0] in " \t"), "fence", 0
        if "|" in line and self.kind != "rst" and "|" in self.line(i + 1) and DELIMITER.match(self.line(i + 1)):
            return self._while(i + 2, lambda n: "|" in self.line(n)), "head", 0
        item = ITEM.match(line) is not None
        end = self._while(i + 1, lambda n: bool(self.line(n)) and not self._begins(n))
        return end, "item" if item else "text", 0

    def _begins(self, i: int) -> bool:
        """Whether a line begins another part than the one before it."""
        line = self.line(i)
        return bool(FENCE.match(line) or ITEM.match(line) or self._heading(i)) or (
            "|" in line and "|" in self.line(i + 1) and DELIMITER.match(self.line(i + 1)) is not None
        )

    def _while(self, i: int, good: object) -> int:
        while i < len(self.spans) and good(i):  # type: ignore[operator]
            i += 1
        while i > 1 and not self.line(i - 1):
            i -= 1
        return i

    def _fence(self, i: int, mark: str) -> int:
        for j in range(i + 1, len(self.spans)):
            if self.line(j).strip().startswith(mark) and not self.line(j).strip().strip(mark[0]):
                return j + 1
        return len(self.spans)

    def _heading(self, i: int) -> tuple[int, int] | None:
        """The end and the level of a heading that begins here."""
        line = self.line(i)
        if self.kind == "markdown":
            found = ATX.match(line)
            if found:
                return i + 1, len(found.group(1))
        over = RULE.match(line)
        if over and self.kind != "markdown" and self._underlined(i + 1) and self.line(i + 2)[0] == over.group(1):
            return i + 3, self._rank(over.group(1) + "over")
        if self._underlined(i):
            mark = self.line(i + 1)[0]
            if self.kind == "markdown":
                return (i + 2, "=-".index(mark) + 1) if mark in "=-" else None
            return i + 2, self._rank(mark)
        if self.kind == "plain" and not self.line(i - 1):
            found = NUMBERED.match(line)
            if found and not self.line(i + 1):
                return i + 1, found.group(1).count(".") + 1
            if CAPITALS.match(line) and self.line(i + 1)[:1] in (" ", "\t"):
                return i + 1, 1
        return None

    def _underlined(self, i: int) -> bool:
        title, under = self.line(i), self.line(i + 1)
        if not title.strip() or RULE.match(title) or not RULE.match(under) or len(under) < 0.8 * len(title.strip()):
            return False
        # A rule below several lines parts them from what follows.
        return not self.line(i - 1) or RULE.match(self.line(i - 1)) is not None

    def _rank(self, mark: str) -> int:
        if mark not in self.ranks:
            self.ranks.append(mark)
        return min(self.ranks.index(mark) + 1, 6)


def shifted(units: Sequence[Unit], by: int, place: str, level: int = 0) -> list[Unit]:
    """Parts of a text that stands inside another."""
    return [Unit(u.start + by, u.end + by, u.kind, u.level + level if u.level else 0, u.place or place) for u in units]
