"""Tokens by the bytes they begin with: a sorted list, searched by halving."""

from __future__ import annotations

from bisect import bisect_left
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tokensieve.text.vocabulary import Vocabulary

NONE = 256
"""Stands for the byte behind a token's last one."""


class Prefixes:
    """The tokens of text of a vocabulary in the order of their bytes; special tokens are none of them.

    Attributes:
        ids: in that order; longest: bytes of the longest token.
    """

    def __init__(self, vocabulary: Vocabulary):
        pairs = sorted((b, i) for i, b in enumerate(vocabulary.bytes) if b)
        self._bytes = [b for b, _ in pairs]
        self.ids: NDArray[np.int64] = np.array([i for _, i in pairs], np.int64)
        self.longest = max(map(len, self._bytes), default=0)
        self._columns: dict[int, NDArray[np.int64]] = {}

    def range(self, prefix: bytes) -> slice:
        """Where in ``ids`` the tokens stand that begin with some bytes, those that are these bytes first."""
        first = bisect_left(self._bytes, prefix)
        following = prefix.rstrip(b"\xff")
        if not following:
            return slice(first, len(self._bytes))
        return slice(first, bisect_left(self._bytes, following[:-1] + bytes([following[-1] + 1])))

    def column(self, depth: int) -> NDArray[np.int64]:
        """The byte of each token at a depth; ``NONE`` behind its end."""
        if depth not in self._columns:
            self._columns[depth] = np.array([b[depth] if len(b) > depth else NONE for b in self._bytes], np.int64)
        return self._columns[depth]

    def inside(self, text: bytes) -> list[int]:
        """Ids of tokens that the bytes of a text begin with, the whole text among them."""
        return [i for n in range(1, min(len(text), self.longest) + 1) for i in self._whole.get(text[:n], ())]

    @cached_property
    def _whole(self) -> dict[bytes, list[int]]:
        out: dict[bytes, list[int]] = {}
        for b, i in zip(self._bytes, self.ids.tolist(), strict=True):
            out.setdefault(b, []).append(i)
        return out
