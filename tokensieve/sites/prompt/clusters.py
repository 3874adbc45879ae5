"""Clusters: what a reader takes for one character (letters with marks, joined emoji), which nothing here ever cuts."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

import regex

CLUSTER = regex.compile(r"\X")
BLANKLESS = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
"""Scripts that write no blanks between words."""
WORD = regex.compile(rf"(?=[{BLANKLESS}])\X|(?:(?![\s{BLANKLESS}])\X)+")
"""A word: what stands between blanks, with its punctuation; in scripts without blanks one cluster."""


class Clusters:
    """Where the clusters of a text begin."""

    def __init__(self, text: str):
        # Of plain ASCII only a line end of two characters is a cluster of several.
        plain = text.isascii() and "\r" not in text
        self._starts = None if plain else [m.start() for m in CLUSTER.finditer(text)]
        self._end = len(text)

    def before(self, place: int) -> int:
        """The last cluster boundary at a place or in front of it."""
        if self._starts is None or place >= self._end:
            return min(place, self._end)
        return self._starts[bisect_right(self._starts, place) - 1]

    def after(self, place: int) -> int:
        """The first cluster boundary at a place or behind it."""
        if self._starts is None:
            return place
        i = bisect_left(self._starts, place)
        return self._starts[i] if i < len(self._starts) else self._end
