"""Seven ways to cut a word into pieces of one vocabulary.

Source: Uzan et al., Greed is All You Need (arXiv 2403.01289). The fewest pieces are found by the shortest path of Schmidt et al.,
Tokenization Is More Than Compression (arXiv 2402.18376).
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

from tokenizers import Tokenizer

from tokensieve.text.merges import merges_of


@dataclass(frozen=True)
class Pieces:
    """A vocabulary of pieces as its words are spelled (a byte-level one in its own alphabet).

    Attributes:
        first: pieces that can begin a word, and their weights: log-probabilities, or 0 where there are none.
        inner: those that can stand further on, likewise; written without a mark.
        merges: pairs of pieces in the order in which they are joined, where the vocabulary has them.
    """

    first: Mapping[str, float]
    inner: Mapping[str, float]
    merges: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Pieces:
        """The pieces of a BPE, a WordPiece or a Unigram vocabulary; special tokens are none."""
        model = json.loads(tokenizer.to_str())["model"]
        special = {t.content for t in tokenizer.get_added_tokens_decoder().values()} | {model.get("unk_token")}
        if model["type"] == "Unigram":
            scores = {s: w for i, (s, w) in enumerate(model["vocab"]) if i != model["unk_id"] and s not in special}
            return cls(scores, scores)
        plain = {s: 0.0 for s in model["vocab"] if s not in special}
        if model["type"] == "WordPiece":
            mark = model["continuing_subword_prefix"]
            inner = {s.removeprefix(mark): 0.0 for s in plain if s.startswith(mark)}
            return cls({s: 0.0 for s in plain if not mark or not s.startswith(mark)}, inner)
        return cls(plain, plain, tuple(merges_of(tokenizer)))

    @cached_property
    def longest(self) -> int:
        """Characters of the longest piece."""
        return max(map(len, [*self.first, *self.inner]), default=0)

    @cached_property
    def ranks(self) -> dict[tuple[str, str], int]:
        """The place of each merge."""
        return {pair: i for i, pair in enumerate(self.merges)}

    def weight(self, word: str, start: int, end: int) -> float | None:
        """The weight of a part of a word; None where it is no piece."""
        return (self.inner if start else self.first).get(word[start:end])


def greedy_prefix(word: str, pieces: Pieces) -> list[str]:
    """The longest piece from the left on."""
    out, at = [], 0
    while at < len(word):
        ends = range(min(len(word), at + pieces.longest), at, -1)
        end = next((e for e in ends if pieces.weight(word, at, e) is not None), None)
        out.append(word[at : _found(end, word)])
        at += len(out[-1])
    return out


def greedy_suffix(word: str, pieces: Pieces) -> list[str]:
    """The longest piece from the right on."""
    out, end = [], len(word)
    while end:
        starts = range(max(0, end - pieces.longest), end)
        start = _found(next((s for s in starts if pieces.weight(word, s, end) is not None), None), word)
        out.append(word[start:end])
        end = start
    return out[::-1]


def greedy_longest(word: str, pieces: Pieces) -> list[str]:
    """The longest piece anywhere, the leftmost of equal ones; then what is left of it and right of it likewise."""

    def cut(start: int, end: int) -> list[str]:
        for size in range(min(end - start, pieces.longest), 0, -1):
            for at in range(start, end - size + 1):
                if pieces.weight(word, at, at + size) is not None:
                    return [*cut(start, at), word[at : at + size], *cut(at + size, end)]
        return [] if start == end else [word[start : _found(None, word)]]

    return cut(0, len(word))


def by_merges(word: str, pieces: Pieces, skip: Callable[[], bool] = lambda: False) -> list[str]:
    """Characters joined by merges in their order (BPE).

    Args:
        skip: says of each merge that could be made whether it is left out this time.

    Raises:
        ValueError: the vocabulary has no merges.
    """
    if not pieces.merges:
        raise ValueError("this vocabulary has no merges; take another segmenter, or a BPE")
    out = list(word)
    for c in out:
        _found(0 if c in pieces.inner else None, word)
    while True:
        pairs = [(pieces.ranks[p], i) for i, p in enumerate(pairwise(out)) if p in pieces.ranks and not skip()]
        if not pairs:
            return out
        at = min(pairs)[1]
        out[at : at + 2] = [out[at] + out[at + 1]]


def dropout(word: str, pieces: Pieces, p: float = 0.1, seed: int = 0) -> list[str]:
    """Merges, each left out with probability p whenever it could be made (BPE-dropout, arXiv 1910.13267).

    Raises:
        ValueError: p is no probability, or the vocabulary has no merges.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"p is {p}; it must lie in 0..1")
    generator = random.Random(f"{seed} {word}")
    return by_merges(word, pieces, lambda: generator.random() < p)


def likeliest(word: str, pieces: Pieces) -> list[str]:
    """The pieces whose weights have the largest sum (Unigram); of equal sums the fewest."""
    return _path(word, pieces, lambda weight: (-weight, 1.0))


def fewest(word: str, pieces: Pieces) -> list[str]:
    """As few pieces as there can be (PathPiece); of as few, those whose last piece is longest, and so on to the left."""
    return _path(word, pieces, lambda weight: (1.0, 0.0))


SEGMENTERS: dict[str, Callable[[str, Pieces], list[str]]] = {
    "prefix": greedy_prefix,
    "suffix": greedy_suffix,
    "longest": greedy_longest,
    "merges": by_merges,
    "dropout": dropout,
    "likeliest": likeliest,
    "fewest": fewest,
}
"""By name; "merges" and "dropout" are for vocabularies with merges."""


def _path(word: str, pieces: Pieces, cost: Callable[[float], tuple[float, float]]) -> list[str]:
    """The cheapest way through a word; of equal ones that whose last piece is longest."""
    best: list[tuple[float, float]] = [(0.0, 0.0)]
    before = [0]
    for end in range(1, len(word) + 1):
        found, at = (math.inf, math.inf), -1
        for start in range(max(0, end - pieces.longest), end):
            weight = pieces.weight(word, start, end)
            if weight is not None and best[start][0] < math.inf:
                a, b = cost(weight)
                total = (best[start][0] + a, best[start][1] + b)
                if total < found:
                    found, at = total, start
        best.append(found)
        before.append(at)
    out, end = [], len(word)
    while end:
        start = _found(before[end] if before[end] >= 0 else None, word)
        out.append(word[start:end])
        end = start
    return out[::-1]


def _found(place: int | None, word: str) -> int:
    if place is None:
        raise ValueError(
            f"{word!r} cannot be cut into pieces of this vocabulary in this way; it lacks characters of it"
        )
    return place
