"""What texts cost in one tokenizer: tokens, pieces of words and numbers, and whether the text comes back."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tokensieve.text.corpus import Document, batches, pieces
from tokensieve.text.encoding import Coder

ALPHA = 2.5
"""Order of the Renyi entropy that goes best with translation quality in the paper."""
GROUP = 1 << 18
"""Characters that are measured at once, about: what is held of them stays small."""
LONGEST = 16
"""Digits of a number up to which its cuts are compared with those of others."""


@dataclass(frozen=True)
class Measured:
    """What texts cost in one tokenizer.

    Attributes:
        documents, bytes: of the texts; tokens: without special ones, which a prompt adds; lengths: of each document, in tokens.
        words, word_pieces: runs of letters and marks, and the tokens that hold a part of each, summed; a token over two words
            counts for both.
        numbers, number_pieces: runs of decimal digits, likewise.
        inconsistent: share of numbers that are cut otherwise than most numbers of as many digits (arXiv 2309.06236); NaN
            without numbers of two to 16 digits.
        renyi: Renyi entropy of the tokens at order 2.5 over the logarithm of the vocabulary's size (arXiv 2306.16842).
        lost: documents that decoding does not give back as they were.
        cut: documents that were encoded in pieces, since they are longer than one is encoded at once.
    """

    documents: int
    bytes: int
    tokens: int
    lengths: tuple[int, ...]
    words: int
    word_pieces: int
    numbers: int
    number_pieces: int
    inconsistent: float
    renyi: float
    lost: tuple[str, ...]
    cut: tuple[str, ...]

    @property
    def bytes_per_token(self) -> float:
        """How much text a token holds."""
        return self.bytes / self.tokens if self.tokens else float("nan")

    @property
    def pieces_per_word(self) -> float:
        """Also called fertility."""
        return self.word_pieces / self.words if self.words else float("nan")

    @property
    def pieces_per_number(self) -> float:
        """Tokens that hold a part of a number, on average."""
        return self.number_pieces / self.numbers if self.numbers else float("nan")


def measure(
    coders: Sequence[Coder], documents: Sequence[Document], step: Callable[[int], object] = lambda characters: None
) -> list[Measured]:
    """Measure tokenizers on the same documents.

    Args:
        step: called with the characters that were measured in all of them since it was last called.
    """
    tallies = [_Tally(coder, len(documents)) for coder in coders]
    cut: list[str] = []
    kinds = _Kinds()

    owners: list[int] = []

    def texts() -> Iterator[str]:
        for i, document in enumerate(documents):
            for n, part in enumerate(pieces(document.text)):
                if n == 1:
                    cut.append(document.name)
                owners.append(i)
                yield part

    for group in batches(texts(), GROUP):
        here, owners[:] = np.array(owners[: len(group)]), owners[len(group) :]
        batch = _Batch.of(group, kinds)
        for tally in tallies:
            tally.add(batch, here)
        step(sum(map(len, group)))
    return [tally.total(documents, tuple(cut)) for tally in tallies]


WORD, NUMBER = 1, 2
LETTERS = bytes(WORD if chr(b).isalpha() else NUMBER if chr(b).isdigit() else 0 for b in range(128)) + bytes(128)


class _Kinds:
    """What each character is: a letter or mark of a word, a decimal digit, or 0; looked up once each."""

    def __init__(self) -> None:
        self._table: NDArray[np.uint8] = np.full(0x110000, 255, np.uint8)

    def of(self, data: bytes) -> NDArray[np.uint8]:
        """The kind of each byte of a text in UTF-8."""
        if data.isascii():
            return np.frombuffer(data.translate(LETTERS), np.uint8)
        points = np.frombuffer(data.decode().encode("utf-32-le"), np.uint32)
        width = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
        found = self._table[points]
        new = np.unique(points[found == 255])
        for point in new.tolist():
            category = unicodedata.category(chr(point))
            self._table[point] = WORD if category[0] in "LM" else NUMBER if category == "Nd" else 0
        return np.repeat(self._table[points] if len(new) else found, width)


@dataclass(frozen=True)
class _Batch:
    """Texts one behind the other, a byte that is none of theirs behind each.

    Attributes:
        texts; data: each in UTF-8; size: bytes of all; first: where each starts.
        words: how many there are; numbers: first and last byte + 1 of each, as (n, 2).
        in_word, in_number: whether a byte is of one, and not its first.
    """

    texts: list[str]
    data: list[bytes]
    size: int
    first: NDArray[np.int64]
    words: int
    numbers: NDArray[np.int64]
    in_word: NDArray[np.bool_]
    in_number: NDArray[np.bool_]

    @classmethod
    def of(cls, texts: list[str], kinds: _Kinds) -> _Batch:
        data = [t.encode() for t in texts]
        joined = b"\n".join([*data, b""])
        kind = kinds.of(joined)
        follows = kind[1:] == kind[:-1]
        word, number = kind == WORD, kind == NUMBER
        in_word, in_number = np.zeros_like(word), np.zeros_like(number)
        np.logical_and(word[1:], follows, out=in_word[1:])
        np.logical_and(number[1:], follows, out=in_number[1:])
        starts, last = np.flatnonzero(number & ~in_number), np.flatnonzero(number[:-1] & ~follows)
        size = np.array([len(d) + 1 for d in data])
        return cls(
            texts, data, len(joined), np.cumsum(size) - size, int(np.count_nonzero(word) - np.count_nonzero(in_word)),
            np.stack([starts, last + 1], 1), in_word, in_number,
        )  # fmt: skip

    def bytes_of(self, i: int, characters: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where characters of text i start."""
        data = np.frombuffer(self.data[i], np.uint8)
        return self.first[i] + np.flatnonzero((data & 0xC0) != 0x80)[characters]


@dataclass
class _Tally:
    """What was counted of one tokenizer so far."""

    coder: Coder
    documents: int
    words: int = 0
    word_pieces: int = 0
    numbers: int = 0
    number_pieces: int = 0
    lost: set[int] = field(default_factory=set)
    lengths: NDArray[np.int64] = field(init=False)
    counts: NDArray[np.int64] = field(init=False)
    cuts: dict[int, NDArray[np.int64]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.lengths = np.zeros(self.documents, np.int64)
        self.counts = np.zeros(len(self.coder.vocabulary), np.int64)

    def add(self, batch: _Batch, owners: NDArray[np.int64]) -> None:
        coded = self.coder.encode(batch.texts, batch.data)
        np.add.at(self.lengths, owners, coded.counts)
        self.lost.update(owners[~coded.returns].tolist())
        starts = np.zeros(batch.size, bool)  # True where a token starts
        starts[coded.starts] = True
        for i in np.flatnonzero(~coded.exact).tolist():
            starts[batch.bytes_of(i, coded.offsets(i))] = True
        self.counts += np.bincount(coded.ids, minlength=len(self.counts))
        self.words += batch.words
        self.word_pieces += batch.words + int(np.count_nonzero(starts & batch.in_word))
        self.numbers += len(batch.numbers)
        self.number_pieces += len(batch.numbers) + int(np.count_nonzero(starts & batch.in_number))
        self._cuts(starts, batch.numbers)

    def _cuts(self, token: NDArray[np.bool_], numbers: NDArray[np.int64]) -> None:
        """How numbers of each length are cut, as a bit for each place between two digits."""
        lengths = numbers[:, 1] - numbers[:, 0]
        for length in range(2, LONGEST + 1):
            starts = numbers[lengths == length, 0]
            if len(starts):
                code = sum(token[starts + j].astype(np.int64) << (j - 1) for j in range(1, length))
                seen = self.cuts.setdefault(length, np.zeros(1 << (length - 1), np.int64))
                seen += np.bincount(code, minlength=len(seen))

    def total(self, documents: Sequence[Document], cut: tuple[str, ...]) -> Measured:
        several = sum(int(c.sum()) for c in self.cuts.values())
        usual = sum(int(c.max()) for c in self.cuts.values())
        tokens = int(self.counts.sum())
        share = self.counts[self.counts > 0] / max(tokens, 1)
        entropy = np.log((share**ALPHA).sum()) / (1 - ALPHA) if tokens else float("nan")
        return Measured(
            documents=len(documents),
            bytes=sum(d.size for d in documents),
            tokens=tokens,
            lengths=tuple(self.lengths.tolist()),
            words=self.words,
            word_pieces=self.word_pieces,
            numbers=self.numbers,
            number_pieces=self.number_pieces,
            inconsistent=1 - usual / several if several else float("nan"),
            renyi=float(entropy / np.log(max(len(self.counts), 2))),
            lost=tuple(documents[i].name for i in sorted(self.lost)),
            cut=cut,
        )
