"""Compressed: what is left of a text, with the way back to the characters it came from."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

from tokensieve.sites.prompt.protect import Span


@dataclass(frozen=True)
class Compressed:
    """A text that was compressed.

    Attributes:
        source: all passages, two line ends between them; starts: where each begins in it.
        spans: the stretches of the source that stay, (start, end) in characters, in order.
        before, after: the tokens of ``source`` and of ``text``.
        counted: whose tokens they are.
        notes: what had to be done otherwise than asked, a sentence each.
    """

    source: str
    starts: tuple[int, ...]
    spans: tuple[Span, ...]
    before: int
    after: int
    counted: str
    notes: tuple[str, ...] = ()

    @cached_property
    def text(self) -> str:
        """What is left: the stretches one behind the other."""
        return "".join(self.source[a:b] for a, b in self.spans)

    @property
    def dropped(self) -> tuple[Span, ...]:
        """The stretches of the source that left."""
        edges = [(0, 0), *self.spans, (len(self.source), len(self.source))]
        return tuple((a[1], b[0]) for a, b in pairwise(edges) if a[1] < b[0])

    def origin(self, place: int) -> tuple[int, int]:
        """Of a character of :attr:`text`: its passage, from 0, and its place there.

        Raises:
            IndexError: the text has no such character.
        """
        if not 0 <= place < len(self.text):
            raise IndexError(f"place={place}; the text has characters 0 to {len(self.text) - 1}")
        i, begun = _piece(self.spans, place)
        there = self.spans[i][0] + place - begun
        passage = bisect_right(self.starts, there) - 1
        return passage, there - self.starts[passage]


def back(spans: Sequence[Span], inner: Sequence[Span]) -> list[Span]:
    """Stretches of the text that ``spans`` leave of a source, as stretches of the source."""
    out: list[Span] = []
    for a, b in inner:
        while a < b:
            i, begun = _piece(spans, a)
            there = spans[i][0] + a - begun
            take = min(b - a, spans[i][1] - there)
            if out and out[-1][1] == there:
                out[-1] = (out[-1][0], there + take)
            else:
                out.append((there, there + take))
            a += take
    return out


def forth(spans: Sequence[Span], place: int) -> int:
    """A place of the source in the text that ``spans`` leave: that of the first character there that did not stand before it."""
    out = 0
    for a, b in spans:
        if place <= a:
            break
        out += min(b, place) - a
    return out


def _piece(spans: Sequence[Span], place: int) -> tuple[int, int]:
    """The stretch that holds a character of the text, and where in the text that stretch begins."""
    begins = list(accumulate((b - a for a, b in spans), initial=0))
    i = bisect_right(begins, place, hi=len(spans)) - 1
    return i, begins[i]
