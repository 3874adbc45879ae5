"""What texts cost in one tokenizer: tokens, pieces of words and numbers, and whether the text comes back."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

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
    tallies = [_Tally(coder) for coder in coders]
    cut = []
    kinds = _Kinds()

    def parts() -> Iterator[tuple[int, str]]:
        for i, document in enumerate(documents):
            several = list(pieces(document.text))
            if len(several) > 1:
                cut.append(document.name)
            yield from ((i, part) for part in several)

    owners: list[int] = []

    def texts() -> Iterator[str]:
        for i, part in parts():
            owners.append(i)
            yield part

    for group in batches(texts(), GROUP):
        here, owners[:] = owners[: len(group)], owners[len(group) :]
        batch = _Batch.of(group, kinds)
        for tally in tallies:
            tally.add(batch, here)
        step(sum(map(len, group)))
    return [tally.total(documents, tuple(dict.fromkeys(cut))) for tally in tallies]


class _Kinds:
    """What each code point is: 0 other, 1 letter or mark, 2 decimal digit; looked up once each."""

    def __init__(self) -> None:
        self._table: NDArray[np.uint8] = np.full(0x110000, 255, np.uint8)

    def of(self, points: NDArray[Any]) -> NDArray[np.uint8]:
        found = self._table[points]
        new = np.unique(points[found == 255])
        for point in new.tolist():
            category = unicodedata.category(chr(point))
            self._table[point] = 1 if category[0] in "LM" else 2 if category == "Nd" else 0
        return self._table[points] if len(new) else found


@dataclass(frozen=True)
class _Batch:
    """Texts one behind the other, a byte that is none of theirs behind each.

    Attributes:
        texts; data: each in UTF-8; starts: first byte of each; size: bytes of all.
        chars: the byte at which each character starts, of all texts; first: the index of each text's first character there.
        words, numbers: first and last byte + 1 of each run, as (n, 2).
    """

    texts: list[str]
    data: list[bytes]
    starts: NDArray[np.int64]
    size: int
    chars: NDArray[np.int64]
    first: NDArray[np.int64]
    words: NDArray[np.int64]
    numbers: NDArray[np.int64]

    @classmethod
    def of(cls, texts: list[str], kinds: _Kinds) -> _Batch:
        data = [t.encode() for t in texts]
        joined = "\n".join(texts) + "\n"
        if joined.isascii():
            points = np.frombuffer(joined.encode(), np.uint8)
            chars = np.arange(len(points))
        else:
            points = np.frombuffer(joined.encode("utf-32-le"), np.uint32)
            width = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
            chars = np.cumsum(width) - width
        kind = kinds.of(points)
        lengths = np.array([len(d) + 1 for d in data])
        counts = np.array([len(t) + 1 for t in texts])
        return cls(
            texts, data, np.cumsum(lengths) - lengths, int(lengths.sum()), chars, np.cumsum(counts) - counts,
            chars[_runs(kind == 1)], chars[_runs(kind == 2)],
        )  # fmt: skip


def _runs(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Start and end of each run of True in a mask that ends in False, as (n, 2)."""
    edges = np.flatnonzero(mask[1:] != mask[:-1]) + 1
    if mask[0]:
        edges = np.r_[0, edges]
    return edges.reshape(-1, 2)


@dataclass
class _Tally:
    """What was counted of one tokenizer so far."""

    coder: Coder
    lengths: dict[int, int] = field(default_factory=dict)
    words: int = 0
    word_pieces: int = 0
    numbers: int = 0
    number_pieces: int = 0
    lost: set[int] = field(default_factory=set)
    counts: NDArray[np.int64] = field(init=False)
    cuts: dict[int, NDArray[np.int64]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.counts = np.zeros(len(self.coder.vocabulary), np.int64)

    def add(self, batch: _Batch, owners: list[int]) -> None:
        coded = self.coder.encode(batch.texts, batch.data)
        flags = np.zeros(batch.size, np.int32)  # 1 where a token starts
        for i, (ids, exact) in enumerate(zip(coded.ids, coded.exact, strict=True)):
            self.lengths[owners[i]] = self.lengths.get(owners[i], 0) + len(ids)
            if not coded.returns[i]:
                self.lost.add(owners[i])
            if exact is not None:
                flags[batch.starts[i] + exact] = 1
            else:
                flags[batch.chars[batch.first[i] + coded.offsets(i)]] = 1
        self.counts += np.bincount(np.concatenate(coded.ids), minlength=len(self.counts))
        before = np.cumsum(flags, dtype=np.int32)  # tokens that start at or before a byte
        for name, runs in (("word", batch.words), ("number", batch.numbers)):
            pieces_of = 1 + before[runs[:, 1] - 1] - before[runs[:, 0]]
            setattr(self, f"{name}s", getattr(self, f"{name}s") + len(runs))
            setattr(self, f"{name}_pieces", getattr(self, f"{name}_pieces") + int(pieces_of.sum()))
        self._cuts(flags, batch.numbers)

    def _cuts(self, flags: NDArray[np.int32], numbers: NDArray[np.int64]) -> None:
        """How numbers of each length are cut, as a bit for each place between two digits."""
        lengths = numbers[:, 1] - numbers[:, 0]
        for length in range(2, LONGEST + 1):
            starts = numbers[lengths == length, 0]
            if len(starts):
                code = sum(flags[starts + j].astype(np.int64) << (j - 1) for j in range(1, length))
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
            lengths=tuple(self.lengths[i] for i in range(len(documents))),
            words=self.words,
            word_pieces=self.word_pieces,
            numbers=self.numbers,
            number_pieces=self.number_pieces,
            inconsistent=1 - usual / several if several else float("nan"),
            renyi=float(entropy / np.log(max(len(self.counts), 2))),
            lost=tuple(documents[i].name for i in sorted(self.lost)),
            cut=cut,
        )
