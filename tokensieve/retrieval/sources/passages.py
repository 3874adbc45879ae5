"""Passages: pieces of texts, small enough for an encoder, and where they stand."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import unescape
from html.parser import HTMLParser
from typing import Any

MOST = 700
"""Characters of a passage: about 200 tokens of prose or of code."""
LEAST = 200
"""Characters that a passage holds before a heading begins another."""
BLANK = re.compile(r"\n[^\S\n]*\n\s*")
HEADING = re.compile(r"#{1,6}\s")
BREAKS = (re.compile(r"\n"), re.compile(r"[.!?;:。！？]\s*"), re.compile(r"\s"))

Span = tuple[int, int]


def is_text(value: Any) -> bool:
    """Whether it is a string that can be written: bytes that are no UTF-8 come from a terminal or a file's name as halves of
    surrogate pairs, which cannot."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def cut(text: str, most: int = MOST) -> list[Span]:
    """Spans of at most ``most`` characters that hold everything but blanks between them: whole paragraphs together where
    they fit, longer ones cut at lines, sentences or words."""
    out: list[Span] = []
    for a, b in _paragraphs(text):
        for first, last in _shorter(text, a, b, most):
            if out and last - out[-1][0] <= most and not _begins(text, first, out[-1]):
                out[-1] = out[-1][0], last
            else:
                out.append((first, last))
    return out


def halves(text: str, span: Span) -> list[Span]:
    """A span of at least two characters as shorter ones."""
    return list(_shorter(text, *span, most=max((span[1] - span[0] + 1) // 2, 1)))


def _begins(text: str, start: int, before: Span) -> bool:
    return before[1] - before[0] >= LEAST and HEADING.match(text, start) is not None


def _paragraphs(text: str) -> Iterator[Span]:
    start = 0
    for gap in BLANK.finditer(text):
        yield from _stripped(text, start, gap.start())
        start = gap.end()
    yield from _stripped(text, start, len(text))


def _stripped(text: str, a: int, b: int) -> Iterator[Span]:
    part = text[a:b]
    inner = part.strip()
    if inner:
        a += len(part) - len(part.lstrip())
        yield a, a + len(inner)


def _shorter(text: str, a: int, b: int, most: int) -> Iterator[Span]:
    while b - a > most:
        end = _break(text, a + most // 2, a + most)
        yield from _stripped(text, a, end)
        a = end
    yield from _stripped(text, a, b)


def _break(text: str, low: int, high: int) -> int:
    """The last good place to cut in the second half of a piece."""
    for pattern in BREAKS:
        found = [m.end() for m in pattern.finditer(text, low, high)]
        if found:
            return found[-1]
    return high


@dataclass
class Page:
    """The text of an HTML page, and where in the source each part of it stands."""

    text: str = ""
    _starts: list[int] = field(default_factory=list)
    _sources: list[Span] = field(default_factory=list)

    @classmethod
    def read(cls, source: str) -> Page:
        parser = _Parser(source)
        parser.feed(source)
        parser.close()
        out, length = cls(), 0
        for part, where in parser.parts:
            out._starts.append(length)
            out._sources.append(where)
            length += len(part)
        out.text = "".join(part for part, _ in parser.parts)
        return out

    def source(self, span: Span) -> Span:
        """The span of the source behind one of the text."""
        return self._at(span[0], False), self._at(span[1] - 1, True)

    def _at(self, place: int, end: bool) -> int:
        i = bisect_right(self._starts, place) - 1
        first, last = self._sources[i]
        inside = place - self._starts[i] + end
        # An entity is one character of the text and several of the source.
        return min(first + inside, last) if self._plain(i) else (last if end else first)

    def _plain(self, i: int) -> bool:
        after = self._starts[i + 1] if i + 1 < len(self._starts) else len(self.text)
        first, last = self._sources[i]
        return after - self._starts[i] == last - first


class _Parser(HTMLParser):
    SILENT = frozenset({"script", "style", "noscript", "template", "svg"})
    INLINE = frozenset(
        {"a", "abbr", "b", "bdi", "bdo", "cite", "code", "em", "i", "kbd", "mark", "q", "s", "samp", "small", "span",
         "strong", "sub", "sup", "time", "u", "var", "wbr"}
    )  # fmt: skip

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=False)
        self.parts: list[tuple[str, Span]] = []
        self._silent = 0
        self._source = source
        self._lines = [0, *(m.end() for m in re.finditer("\n", source))]

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._silent += tag in self.SILENT
        self._gap(tag)

    def handle_endtag(self, tag: str) -> None:
        self._silent = max(self._silent - (tag in self.SILENT), 0)
        self._gap(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self._gap(tag)

    def handle_data(self, data: str) -> None:
        self._say(data, len(data))

    def handle_entityref(self, name: str) -> None:
        self._entity(f"&{name}")

    def handle_charref(self, name: str) -> None:
        self._entity(f"&#{name}")

    def _entity(self, raw: str) -> None:
        closed = self._source.startswith(";", self._place() + len(raw))
        self._say(unescape(raw + ";" if closed else raw), len(raw) + closed)

    def _gap(self, tag: str) -> None:
        if tag not in self.INLINE:
            place = self._place()
            self.parts.append(("\n\n", (place, place)))

    def _say(self, text: str, length: int) -> None:
        if not self._silent and text:
            place = self._place()
            self.parts.append((text, (place, place + length)))

    def _place(self) -> int:
        line, column = self.getpos()
        return self._lines[line - 1] + column
