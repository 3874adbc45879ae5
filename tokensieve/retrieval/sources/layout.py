"""Layout: the text that passages are cut from, what its parts are, and where each stands in the source."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal

Span = tuple[int, int]
Kind = Literal["text", "heading", "item", "fence", "code", "head", "row"]


@dataclass(frozen=True)
class Unit:
    """A part of a text that readers take as one.

    Attributes:
        start, end: its characters.
        kind: a paragraph; a heading, or the first line of a definition; a list item; a fenced block; a stretch of code; the head
            of a table; a row of one.
        level: of a heading, from 1 at the top. Of other parts, the level of headings that they no longer belong to; 0 for parts
            that belong to every heading above them.
        place: where it stands, in words ("cell 3"), where that is no line.
    """

    start: int
    end: int
    kind: Kind = "text"
    level: int = 0
    place: str = ""


@dataclass(frozen=True)
class Layout:
    """A text and its parts, in their order.

    Attributes:
        left_out: what of the source is no text to be found, in words, and how often.
        starts, sources: where pieces of the text begin, and the characters of the source behind each; empty where the text is
            the source.
    """

    text: str
    units: Sequence[Unit]
    left_out: dict[str, int] = field(default_factory=dict)
    starts: Sequence[int] = ()
    sources: Sequence[Span] = ()

    def source(self, span: Span) -> Span:
        """The characters of the source behind some of the text."""
        if not self.starts:
            return span
        return self._at(span[0], False), self._at(span[1] - 1, True)

    def _at(self, place: int, end: bool) -> int:
        i = bisect_right(self.starts, place) - 1
        after = self.starts[i + 1] if i + 1 < len(self.starts) else len(self.text)
        first, last = self.sources[i]
        # An entity or an escape is one character of the text and several of the source.
        if after - self.starts[i] != last - first:
            return last if end else first
        return first + place - self.starts[i] + end


def joined(parts: Iterable[tuple[str, Span]]) -> tuple[str, list[int], list[Span]]:
    """The text of pieces, where each begins, and the characters of the source behind each."""
    kept = [(text, span) for text, span in parts if text]
    starts = [0, *accumulate(len(text) for text, _ in kept)][: len(kept)]
    return "".join(text for text, _ in kept), starts, [span for _, span in kept]
