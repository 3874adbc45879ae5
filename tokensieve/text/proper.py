"""Which row of tokens a tokenizer writes for some bytes, and whether a row is one it would write.

Source: Phan et al., Exact Byte-Level Probabilities from Tokenized Language Models (arXiv 2410.09303), whose valid encodings these
are; for the properness of rows, Geng et al. (arXiv 2412.03160).
"""

from __future__ import annotations

import codecs
import functools
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer

from tokensieve.text.loading import byte_alphabet, open_tokenizer
from tokensieve.text.vocabulary import BYTE, Vocabulary

Ids = tuple[int, ...]


def is_proper(tokenizer: Any, ids: Sequence[int]) -> bool:
    """Whether a row of tokens is the one that the tokenizer writes for its text.

    Args:
        tokenizer: anything that :func:`~tokensieve.text.loading.open_tokenizer` takes.
        ids: tokens of text and special ones. A row whose bytes are no whole characters is judged by :class:`Spelling`.

    Raises:
        ValueError: an id that is none of the vocabulary's.
    """
    spelling = _spelling(tokenizer)
    text = spelling.joined(ids)
    try:
        frame = spelling.frame(text)
        written = frame.ids(frame.tail)
    except UnicodeDecodeError:
        return False
    return written is not None and (*frame.head, *written) == tuple(ids)


@functools.lru_cache(maxsize=8)
def _kept(state: str) -> Spelling:
    return Spelling(Tokenizer.from_str(state))


def _spelling(tokenizer: Any) -> Spelling:
    return tokenizer if isinstance(tokenizer, Spelling) else _kept(open_tokenizer(tokenizer).to_str())


class Spelling:
    """A tokenizer as what writes bytes, those of cut characters too.

    A text that ends inside a character is no text; the row written for it is that which byte-pair merges make of its bytes, in
    the word that the smallest character completing it would stand in. Byte-fallback vocabularies write such an end in single
    bytes; others cannot.

    Attributes:
        tokenizer, vocabulary: what it is made of.
        start: special tokens that the tokenizer puts before a text.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.vocabulary = Vocabulary.of(tokenizer)
        self.special = self.vocabulary.added & self.vocabulary.special
        first = tokenizer.encode("a", add_special_tokens=True).ids
        inner = tokenizer.encode("a", add_special_tokens=False).ids
        at = next((i for i in range(len(first)) if first[i : i + len(inner)] == inner), 0)
        self.start: Ids = tuple(first[:at])
        alphabet = byte_alphabet()
        self._spelled = (lambda b: "".join(alphabet[c] for c in b)) if self.vocabulary.kind == "byte-level" else None

    def joined(self, ids: Sequence[int]) -> bytes:
        """The bytes that tokens stand for, special tokens by their names."""
        size = len(self.vocabulary)
        wrong = [i for i in ids if not 0 <= i < size or self.vocabulary.strings[i] is None]
        if wrong:
            raise ValueError(f"ids has {wrong[0]}, which is no token; ids lie in 0..{size - 1}")
        given = (self.vocabulary.bytes[i] for i in ids)
        return b"".join(
            b if b is not None else str(self.vocabulary.strings[i]).encode() for i, b in zip(ids, given, strict=True)
        )

    def encode(self, text: str) -> list[int]:
        """The tokens of a text; none are added."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def frame(self, data: bytes) -> Frame:
        """Bytes as what their special tokens fix and what follows the last of them.

        Raises:
            UnicodeDecodeError: they are not UTF-8, but for a character that is cut at their end.
        """
        whole, rest = cut(data)
        text = whole.decode()
        found = self.tokenizer.encode(text, add_special_tokens=False)
        at = max((i for i, t in enumerate(found.ids) if t in self.special), default=-1)
        end = found.offsets[at][1] if at >= 0 else 0
        return Frame(self, text[:end], tuple(found.ids[: at + 1]), text[end:].encode() + rest)


class Frame:
    """A text up to its last special token, and the rows that can stand behind it.

    Attributes:
        head: tokens up to that token, itself among them; tail: the bytes behind it.
        lead: what the tokenizer puts before the first word of the tail: a space, or nothing.
    """

    def __init__(self, spelling: Spelling, text: str, head: Ids, tail: bytes):
        self.spelling, self.head, self.tail = spelling, head, tail
        self._text = text
        probe = self._behind("a")
        self.lead = b" " if probe is not None and spelling.joined(probe) == b" a" else b""
        self._lead: Ids | None = ()
        if self.lead:
            words = zip(spelling.vocabulary.strings, spelling.vocabulary.bytes, strict=True)
            alone = [i for i, (s, b) in enumerate(words) if b == self.lead and not BYTE.fullmatch(s or "")]
            self._lead = (alone[0],) if alone else None

    def ids(self, data: bytes) -> Ids | None:
        """The row written for bytes behind the head, the lead before them; None where it does not give them back."""
        if not data:
            return () if not self.lead else self._lead
        whole, rest = cut(data)
        if rest:
            return self._cut(whole, rest)
        return self._exact(self._behind(whole.decode()), data)

    def _behind(self, text: str) -> Ids | None:
        ids = tuple(self.spelling.encode(self._text + text))
        n = len(self.head)
        return ids[n:] if ids[:n] == self.head else None

    def _exact(self, ids: Ids | None, data: bytes) -> Ids | None:
        if ids is None or any(i in self.spelling.vocabulary.special for i in ids):
            return None
        return ids if self.spelling.joined(ids) == self.lead + data else None

    def _cut(self, whole: bytes, rest: bytes) -> Ids | None:
        """The row for bytes that end inside a character."""
        spelling = self.spelling
        if spelling.vocabulary.kind == "byte-fallback":
            before = self.ids(whole)
            known = [i for b in rest if (i := spelling.tokenizer.token_to_id(f"<0x{b:02X}>")) is not None]
            return (*before, *known) if before is not None and len(known) == len(rest) else None
        if spelling._spelled is None:
            return None
        found = spelling.tokenizer.encode(self._text + whole.decode() + completed(rest), add_special_tokens=False)
        n = len(self.head)
        if tuple(found.ids[:n]) != self.head:
            return None
        last = len(found.ids)
        while last > n and found.word_ids[last - 1] == found.word_ids[-1]:
            last -= 1
        data = self.lead + whole + rest
        before = tuple(found.ids[n:last])
        size = len(spelling.joined(before))
        word = tuple(t.id for t in spelling.tokenizer.model.tokenize(spelling._spelled(data[size:])))
        return self._exact((*before, *word), whole + rest)


def cut(data: bytes) -> tuple[bytes, bytes]:
    """Bytes up to their last whole character, and what of the next one follows.

    Raises:
        UnicodeDecodeError: they are not UTF-8 elsewhere.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    decoder.decode(data)
    rest = decoder.getstate()[0]
    return data[: len(data) - len(rest)], rest


@functools.lru_cache(maxsize=4096)
def following(rest: bytes) -> frozenset[int]:
    """The bytes that can follow the beginning of a character."""
    out = set()
    for b in range(256):
        try:
            cut(rest + bytes([b]))
        except UnicodeDecodeError:
            continue
        out.add(b)
    return frozenset(out)


def completed(rest: bytes) -> str:
    """The smallest character that begins with these bytes."""
    while cut(rest)[1]:
        rest += bytes([min(following(rest))])
    return rest.decode()
