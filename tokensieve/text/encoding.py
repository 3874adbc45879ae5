"""Encoding many texts: the tokens, where each starts, and whether the text comes back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tokensieve.text.loading import open_tokenizer
from tokensieve.text.vocabulary import Vocabulary

SAMPLE = 32
"""Texts on which another encoder must give the ids that Hugging Face's gives, before it is used."""


@dataclass(frozen=True)
class Coded:
    """Encoded texts.

    Attributes:
        ids: of each text.
        exact: the byte at which each token starts, where the tokens' bytes are those of the text; None where they are not.
        returns: whether decoding gives each text back.
    """

    ids: list[NDArray[np.int64]]
    exact: list[NDArray[np.int64] | None]
    returns: list[bool]
    _encodings: dict[int, Any]

    def offsets(self, i: int) -> NDArray[np.int64]:
        """The character at which each token of text i starts, as the tokenizer says it."""
        spans = np.array(self._encodings[i].offsets, np.int64).reshape(-1, 2)
        return spans[spans[:, 1] > spans[:, 0], 0]


class Coder:
    """A tokenizer that encodes many texts.

    Args:
        name: what it is called in tables.
        source: anything that :func:`~tokensieve.text.loading.open_tokenizer` takes.

    Attributes:
        tokenizer, vocabulary: what was opened.
        note: which encoder is used, and why not the faster one.
    """

    def __init__(self, name: str, source: Any):
        self.name = name
        self.tokenizer: Tokenizer = open_tokenizer(source)
        self.vocabulary = Vocabulary.of(self.tokenizer)
        self.note = "tokenizers"
        self._fast: Any = None
        self._asked = False
        self._bytes = [b or b"" for b in self.vocabulary.bytes]
        self._widths = np.array([len(b) for b in self._bytes], np.int64)

    def encode(self, texts: Sequence[str], data: Sequence[bytes]) -> Coded:
        """Encode texts, given as strings and in UTF-8; no special tokens are added."""
        if not self._asked:
            self._asked = True
            self._fast, self.note = _gigatoken(self.tokenizer, texts[:SAMPLE])
        if self._fast is not None:
            rows = [row.tolist() for row in self._fast(data)]
        else:
            rows = [e.ids for e in self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]
        ids = [np.array(row, np.int64) for row in rows]
        exact = [self._starts(row, array, given) for row, array, given in zip(rows, ids, data, strict=True)]
        inexact = [i for i, starts in enumerate(exact) if starts is None]
        again = self.tokenizer.encode_batch([texts[i] for i in inexact], add_special_tokens=False) if inexact else []
        returns = [starts is not None for starts in exact]
        for i in inexact:
            returns[i] = self.tokenizer.decode(rows[i], skip_special_tokens=False) == texts[i]
        return Coded(ids, exact, returns, dict(zip(inexact, again, strict=True)))

    def _starts(self, row: list[int], ids: NDArray[np.int64], data: bytes) -> NDArray[np.int64] | None:
        """Where each token starts in a text, if what the tokens stand for is that text, but for a space put before it."""
        joined = b"".join(map(self._bytes.__getitem__, row))
        added = 1 if joined[:1] == b" " and len(joined) == len(data) + 1 else 0
        if joined[added:] != data:
            return None
        widths = self._widths[ids]
        return np.maximum(np.cumsum(widths) - widths - added, 0)


def _gigatoken(tokenizer: Tokenizer, sample: Sequence[str]) -> tuple[Any, str]:
    """gigatoken's encoder where it is installed, reads this tokenizer, and agrees on a sample; and what to say of it."""
    try:
        import gigatoken
    except ImportError:
        return None, "tokenizers"
    try:
        fast = gigatoken.Tokenizer(tokenizer)
        wanted = [e.ids for e in tokenizer.encode_batch_fast(list(sample), add_special_tokens=False)]
        got = [list(row) for row in fast.encode_batch([t.encode() for t in sample])]
    except Exception as problem:  # it panics as well as raises, in types of its own
        return None, f"tokenizers (gigatoken refuses this tokenizer: {str(problem).splitlines()[0]})"
    if got != wanted:
        return None, f"tokenizers (gigatoken gave other ids on a sample of {len(sample)} texts)"
    return fast.encode_batch, f"gigatoken {getattr(gigatoken, '__version__', '')}".rstrip()
