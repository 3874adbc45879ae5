"""Cutting: a text into units that stay or go whole, and the text that units leave when others have gone."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokensieve.extras import Lazy
from tokensieve.sites.prompt.clusters import WORD, Clusters
from tokensieve.sites.prompt.protect import MARKERS, Span

sentencex: Any = Lazy("sentencex", "prompts")

LONG = 500
"""Characters of the longest sentence: a stretch without an end is cut at a line, a blank, or between clusters."""
PHRASE = 30
"""Characters of the shortest sentence that a blank ends."""
_LETTER = r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]"
UNMARKED = re.compile(rf"(?<={_LETTER})\s+(?={_LETTER})")
"""Blanks between letters of Thai, Lao, Burmese or Khmer, which write few or no marks at the end of a sentence."""
FENCE = re.compile(r"\s*(```|~~~)")
ALONE = re.compile(r"\s*(?:#{1,6}\s|\||\+[-=+]{3,}|[-=*_~]{3,}\s*$)|[^\n]*\t[^\n]*\t")
"""Lines that are units of their own: headings, rows of tables, rules."""
ITEM = re.compile(r"\s*(?:[-*+•‣]|\d{1,3}[.)]|[a-zA-Z][.)])\s")
"""Lines that begin a list's item."""


@dataclass(frozen=True)
class Cut:
    """A text and its units.

    Attributes:
        text: all passages, one behind the other.
        starts: where each passage begins.
        spans: the units, in order, without overlaps; what stands between them is blank.
    """

    text: str
    starts: tuple[int, ...]
    spans: tuple[Span, ...]

    @cached_property
    def passages(self) -> list[int]:
        """The passage that each unit is of."""
        return [bisect_right(self.starts, a) - 1 for a, _ in self.spans]

    def units(self) -> list[str]:
        """The text of each unit."""
        return [self.text[a:b] for a, b in self.spans]

    def left(self, kept: Sequence[int]) -> list[Span]:
        """The stretches of the text that some units, in order, leave: all of it where all stay.

        Between two that stay there is the widest of the blanks that stood between them, so that paragraphs stay apart.
        """
        if len(kept) == len(self.spans):
            return [(0, len(self.text))] if self.text else []
        out = [self.spans[unit] for unit in kept[:1]]
        for before, unit in pairwise(kept):
            out += [self._gap(before, unit), self.spans[unit]]
        return joined(out)

    def join(self, kept: Sequence[int]) -> str:
        """The text of :meth:`left`."""
        return "".join(self.text[a:b] for a, b in self.left(kept))

    @cached_property
    def _widths(self) -> NDArray[np.int64]:
        """Of the blanks behind each unit but the last: line ends first, then characters, in one number."""
        gaps = ((a[1], b[0]) for a, b in pairwise(self.spans))
        return np.array([(self.text.count("\n", a, b) << 40) + b - a for a, b in gaps], dtype=np.int64)

    def _gap(self, before: int, unit: int) -> Span:
        # By an array: a text of very many units asks for this of each, and few of them may stay.
        at = before + int(self._widths[before:unit].argmax())
        return self.spans[at][1], self.spans[at + 1][0]


def joined(spans: Iterable[Span]) -> list[Span]:
    """Stretches in order, those that touch as one."""
    out: list[Span] = []
    for a, b in spans:
        if a == b:
            continue
        if out and out[-1][1] == a:
            out[-1] = (out[-1][0], b)
        else:
            out.append((a, b))
    return out


def cut(text: str, starts: Sequence[int], unit: str, whole: Sequence[Span] = ()) -> Cut:
    """Cut a text.

    Args:
        starts: where its passages begin.
        unit: "passage", "sentence", "line" or "word".
        whole: stretches that are not cut, in order.

    Raises:
        ImportError: sentences without the package that finds them; it says how it is installed.
    """
    ends = [*starts[1:], len(text)]
    pieces = [piece for a, b in zip(starts, ends, strict=True) for piece in _pieces(text, a, b, unit)]
    return Cut(text, tuple(starts), tuple(_mended(text, pieces, whole)))


def _pieces(text: str, a: int, b: int, unit: str) -> Iterator[Span]:
    """The pieces of a passage; chat markers stand alone, but in whole passages."""
    for marker in MARKERS.finditer(text, a, b) if unit != "passage" else ():
        yield from WAYS[unit](text, a, marker.start())
        yield marker.span()
        a = marker.end()
    yield from WAYS[unit](text, a, b)


def _words(text: str, a: int, b: int) -> Iterator[Span]:
    yield from (m.span() for m in WORD.finditer(text, a, b))


def _passage(text: str, a: int, b: int) -> Iterator[Span]:
    yield a, b


def _lines(text: str, a: int, b: int) -> Iterator[Span]:
    while a < b:
        end = text.find("\n", a, b)
        end = b if end < 0 else end
        yield a, end
        a = end + 1


def _sentences(text: str, a: int, b: int) -> Iterator[Span]:
    for first, last, prose in _blocks(text, a, b):
        if not prose:
            yield from _short(text, first, last)
            continue
        for found in sentencex.get_sentence_boundaries("en", text[first:last]):
            for begin, end in _phrases(text, first + found["start_index"], first + found["end_index"]):
                yield from _short(text, begin, end)


def _phrases(text: str, a: int, b: int) -> Iterator[Span]:
    """A stretch cut at blanks between letters of scripts that end sentences so; at blanks beside numbers it goes on."""
    for blank in UNMARKED.finditer(text, a, b):
        if blank.start() - a >= PHRASE:
            yield a, blank.end()
            a = blank.end()
    yield a, b


def _blocks(text: str, a: int, b: int) -> Iterator[tuple[int, int, bool]]:
    """Stretches of lines, and whether they are prose: lines of code, headings and rows of tables stand alone."""
    start, fenced = a, False
    for first, last in _lines(text, a, b):
        line = text[first:last]
        fence = FENCE.match(line) is not None
        alone = fenced or fence or ALONE.match(line) is not None
        if (alone or not line.strip() or ITEM.match(line)) and start < first:
            yield start, first, True
            start = first
        if alone:
            yield first, last, False
            start = last
        fenced ^= fence
    if start < b:
        yield start, b, True


def _short(text: str, a: int, b: int) -> Iterator[Span]:
    """A stretch in pieces of at most ``LONG`` characters, as far as clusters allow."""
    while b - a > LONG:
        middle, most = a + LONG // 2, a + LONG
        at = text.rfind("\n", middle, most)
        if at < 0:
            blanks = [m.end() for m in re.finditer(r"\s+", text[middle:most])]
            at = middle + blanks[-1] if blanks else most
        yield a, at
        a = at
    yield a, b


WAYS: dict[str, Callable[[str, int, int], Iterator[Span]]] = {
    "passage": _passage, "sentence": _sentences, "line": _lines, "word": _words,
}  # fmt: skip


def _mended(text: str, pieces: Iterable[Span], whole: Sequence[Span]) -> Iterator[Span]:
    """Pieces that begin and end where clusters do, without blanks at their ends, and one wherever a protected stretch would be
    cut. The blanks in front of a line stay with its first words: they are the indentation of code."""
    clusters = Clusters(text)
    last: Span | None = None
    for a, b in pieces:
        start, end = _trimmed(text, clusters.after(a), clusters.after(b), clusters)
        if start >= end:
            continue
        if last is not None and _over(whole, last[1] - 1) > start:
            last = (last[0], end)
            continue
        if last is not None:
            yield last
        last = (start, end)
    if last is not None:
        yield last


def _trimmed(text: str, a: int, b: int, clusters: Clusters) -> Span:
    stretch = text[a:b]
    start = a + len(stretch) - len(stretch.lstrip())
    if start == b:
        return b, b
    line = text.rfind("\n", max(a - 1, 0), start) + 1
    start = clusters.before(max(line, a) if line or a == 0 else start)
    return start, clusters.after(a + len(stretch.rstrip()))


def _over(whole: Sequence[Span], place: int) -> int:
    """The end of the stretch over a place; 0 where there is none."""
    i = bisect_right(whole, place, key=lambda span: span[0]) - 1
    return whole[i][1] if i >= 0 and whole[i][1] > place else 0


def held(cut: Cut, spans: Sequence[Span]) -> list[int]:
    """The units that hold something of these stretches."""
    starts = [a for a, _ in cut.spans]
    found: set[int] = set()
    for a, b in spans:
        first = max(bisect_right(starts, a) - 1, 0)
        for i in range(first, len(starts)):
            if starts[i] >= b:
                break
            if cut.spans[i][1] > a:
                found.add(i)
    return sorted(found)
