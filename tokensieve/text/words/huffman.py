"""Words as Huffman codes: frequent ones in few symbols, and no symbol says anything of what a word is made of.

Source: Wolleb et al., Assessing the Importance of Frequency versus Compositionality for Subword-based Tokenization in NMT (arXiv
2306.01393). Deviation: words that were not seen are spelled in bytes behind a code of their own, so that every text comes back.
"""

from __future__ import annotations

import heapq
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

WORD = re.compile(r" ?[^\W_]+|.", re.S)
"""What counts as a word: letters and digits, a space before them included, or any other character."""

Code = tuple[int, ...]


@dataclass(frozen=True)
class HuffmanWords:
    """A coder of words over a fixed set of symbols.

    Attributes:
        codes: of each word, none the beginning of another; that of None comes before the bytes of a word that has none.
        symbols: how many there are.
    """

    codes: Mapping[str | None, Code]
    symbols: int

    @classmethod
    def train(cls, texts: Iterable[str], symbols: int, words: int | None = None) -> HuffmanWords:
        """Give the words of texts their codes.

        Args:
            symbols: at least 2; with fewer than 257 a byte takes several.
            words: how many of the commonest get a code; all by default. The others are spelled.

        Raises:
            ValueError: an argument out of range, or no text.
        """
        if symbols < 2 or (words is not None and words < 1):
            raise ValueError(f"symbols is {symbols} and words {words}; they must be at least 2 and 1")
        counts = Counter(w for text in texts for w in WORD.findall(text))
        if not counts:
            raise ValueError("texts hold no word; give some text")
        taken: dict[str | None, int] = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:words])
        taken[None] = max(1, counts.total() - sum(taken.values()))
        return cls(huffman(taken, symbols), symbols)

    @cached_property
    def _words(self) -> dict[Code, str | None]:
        return {code: word for word, code in self.codes.items()}

    @cached_property
    def _digits(self) -> int:
        """Symbols of a byte, and of the length of a spelled word."""
        return next(n for n in itertools.count(1) if self.symbols**n >= 256)

    def encode(self, text: str) -> list[int]:
        """Symbols of a text."""
        out: list[int] = []
        for word in WORD.findall(text):
            if word in self.codes:
                out += self.codes[word]
                continue
            data = word.encode()
            for at in range(0, len(data), 255):
                part = data[at : at + 255]
                out += self.codes[None]
                for value in (len(part), *part):
                    out += [value // self.symbols**k % self.symbols for k in reversed(range(self._digits))]
        return out

    def decode(self, row: Sequence[int]) -> str:
        """The text of symbols.

        Raises:
            ValueError: they end inside a code, or hold one that no word has.
        """
        out, at = bytearray(), 0
        longest = max(map(len, self.codes.values()))
        while at < len(row):
            size = next((n for n in range(1, longest + 1) if tuple(row[at : at + n]) in self._words), None)
            if size is None:
                raise ValueError(f"no word's code begins at symbol {at} of {len(row)}")
            word = self._words[tuple(row[at : at + size])]
            at += size
            if word is not None:
                out += word.encode()
                continue
            count, at = self._value(row, at)
            for _ in range(count):
                byte, at = self._value(row, at)
                out.append(byte)
        return out.decode()

    def _value(self, row: Sequence[int], at: int) -> tuple[int, int]:
        """A number written in symbols, and where the next begins."""
        part = row[at : at + self._digits]
        if len(part) < self._digits:
            raise ValueError(f"the {len(row)} symbols end inside a spelled word")
        value = 0
        for digit in part:
            value = value * self.symbols + digit
        return value, at + self._digits


def huffman(counts: Mapping[str | None, int], symbols: int) -> dict[str | None, Code]:
    """The codes over so many symbols with the smallest total length; none is the beginning of another."""
    order = itertools.count()
    heap: list[tuple[int, int, list[str | None]]] = [(n, next(order), [w]) for w, n in counts.items()]
    while len(heap) < 2 or (len(heap) - 1) % (symbols - 1):
        heap.append((0, next(order), []))
    heapq.heapify(heap)
    codes: dict[str | None, Code] = dict.fromkeys(counts, ())
    while len(heap) > 1:
        parts = [heapq.heappop(heap) for _ in range(symbols)]
        for symbol, (_, _, words) in enumerate(parts):
            for w in words:
                codes[w] = (symbol, *codes[w])
        heapq.heappush(heap, (sum(p[0] for p in parts), next(order), [w for p in parts for w in p[2]]))
    return codes
