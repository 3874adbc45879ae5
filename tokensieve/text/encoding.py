"""Encoding many texts: the tokens, where each starts, and whether the text comes back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
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
        ids: of all texts, one behind the other; counts: how many of them each text has.
        starts: the byte at which each token of an exact text starts, of the texts laid out with one byte behind each.
        exact: whether the tokens of each text stand for its bytes, but for a space put before them.
        returns: whether decoding gives each text back.
    """

    ids: NDArray[np.int64]
    counts: NDArray[np.int64]
    starts: NDArray[np.int64]
    exact: NDArray[np.bool_]
    returns: NDArray[np.bool_]
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
        spelled = [b or b"" for b in self.vocabulary.bytes]
        if (
            self.vocabulary.kind == "byte-level"
        ):  # whose decoder writes a special token that matched as text as it stands
            for i in self.vocabulary.special & self.vocabulary.added:
                spelled[i] = str(self.vocabulary.strings[i]).encode()
        self._widths = np.array([len(b) for b in spelled], np.int64)
        self._from = np.cumsum(self._widths) - self._widths
        self._spelled = np.frombuffer(b"".join(spelled), np.uint8)

    def encode(self, texts: Sequence[str], data: Sequence[bytes]) -> Coded:
        """Encode texts, given as strings and in UTF-8; no special tokens are added."""
        if not self._asked:
            self._asked = True
            self._fast, self.note = _gigatoken(self.tokenizer, texts[:SAMPLE])
        if self._fast is not None:
            rows = self._fast(data)
            ids = np.concatenate([np.asarray(row, np.int64) for row in rows])
        else:
            rows = [e.ids for e in self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]
            ids = np.array(list(chain.from_iterable(rows)), np.int64)
        counts = np.array([len(row) for row in rows], np.int64)
        exact, starts = self._compared(ids, counts, data)
        inexact = np.flatnonzero(~exact).tolist()
        again = self.tokenizer.encode_batch([texts[i] for i in inexact], add_special_tokens=False) if inexact else []
        returns = exact.copy()
        for i in inexact:
            returns[i] = self.tokenizer.decode(list(rows[i]), skip_special_tokens=False) == texts[i]
        return Coded(ids, counts, starts, exact, returns, dict(zip(inexact, again, strict=True)))

    def _compared(
        self, ids: NDArray[np.int64], counts: NDArray[np.int64], data: Sequence[bytes]
    ) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Whether what the tokens of each text stand for is that text, and where the tokens of those that do start."""
        widths = self._widths[ids]
        ends = np.cumsum(widths)
        size = np.diff(np.r_[0, ends][np.r_[0, np.cumsum(counts)]])  # bytes of each text's tokens
        lengths = np.array([len(d) for d in data], np.int64)
        added = size - lengths
        exact = (added == 0) | (added == 1)
        if not exact.all():
            ids = ids[np.repeat(exact, counts)]
            widths = self._widths[ids]
            ends = np.cumsum(widths)
        some = np.flatnonzero(exact)
        wanted = b"".join([b" " + data[i] if added[i] else data[i] for i in some.tolist()])
        starts = ends - widths
        said = self._spelled[np.repeat(self._from[ids] - starts, widths) + np.arange(len(wanted))]
        same = said == np.frombuffer(wanted, np.uint8)
        # From where they start among what was compared to where they start in the texts as laid out.
        place = np.cumsum(lengths + 1) - lengths - 1
        before = np.cumsum(size[some]) - size[some]
        starts += np.repeat(place[some] - before - added[some], counts[some])
        if added[some].any():
            starts = np.maximum(starts, np.repeat(place[some], counts[some]))
        if not same.all():
            wrong = np.zeros(len(some), bool)
            wrong[np.searchsorted(np.cumsum(size[some]), np.flatnonzero(~same), side="right")] = True
            starts = starts[np.repeat(~wrong, counts[some])]
            exact[some[wrong]] = False
        return exact, starts


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
