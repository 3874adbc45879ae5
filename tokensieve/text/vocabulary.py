"""What each token of a vocabulary stands for, as bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer

from tokensieve.text.loading import byte_alphabet

BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer's vocabulary, by id.

    Attributes:
        strings: each id's token as the vocabulary writes it; None where an id has none.
        bytes: each id's text in UTF-8; None for special tokens and where an id has none. A word's first piece begins with a
            space wherever the decoder would write one (``wordpiece``, ``metaspace``).
        added: ids of added tokens, which match as text before anything else; special: those of them that are no text.
        kind: how text is written: "byte-level" (GPT-2's alphabet), "byte-fallback" (``<0x0A>`` beside pieces), "metaspace",
            "wordpiece" (``##``), "suffix" (``</w>``), or "plain".
    """

    strings: tuple[str | None, ...]
    bytes: tuple[bytes | None, ...]
    added: frozenset[int]
    special: frozenset[int]
    kind: str

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Vocabulary:
        """The vocabulary of a tokenizer, added tokens included."""
        state = json.loads(tokenizer.to_str())
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        strings: list[str | None] = [None] * (max(vocabulary.values(), default=-1) + 1)
        for string, i in vocabulary.items():
            strings[i] = string
        added = {t["id"]: t for t in state["added_tokens"]}
        special = {i for i, t in added.items() if t["special"]}
        if state["model"].get("unk_token") in vocabulary:
            special.add(vocabulary[state["model"]["unk_token"]])
        unknown = state["model"].get("unk_id")
        if unknown is not None:
            special.add(unknown)
        kind, write = _writer(state)
        given = [
            None if s is None or i in special else s.encode() if i in added else write(s) for i, s in enumerate(strings)
        ]
        return cls(tuple(strings), tuple(given), frozenset(added), frozenset(special), kind)

    def __len__(self) -> int:
        return len(self.strings)

    @cached_property
    def texts(self) -> tuple[str | None, ...]:
        """Each token's text; None where its bytes are no whole characters of UTF-8, or it has none."""
        return tuple(map(_text, self.bytes))

    def plain(self) -> Iterator[int]:
        """Ids of tokens of text that are not added ones."""
        return (i for i, b in enumerate(self.bytes) if b is not None and i not in self.added)


def _text(given: bytes | None) -> str | None:
    try:
        return None if given is None else given.decode()
    except UnicodeDecodeError:
        return None


def flatten(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A normalizer, pre-tokenizer or decoder of a ``tokenizer.json`` as the row of its parts."""
    if part is None:
        return []
    inner = part.get("decoders") or part.get("pretokenizers") or part.get("normalizers")
    return [leaf for each in inner for leaf in flatten(each)] if inner else [part]


def _writer(state: dict[str, Any]) -> tuple[str, Any]:
    """The kind of a vocabulary, and what makes bytes of one of its strings."""
    parts = {p["type"]: p for p in flatten(state.get("decoder"))}
    if "ByteLevel" in parts:
        byte = {c: bytes([b]) for b, c in enumerate(byte_alphabet())}

        def written(s: str) -> bytes:
            return b"".join(byte[c] for c in s) if all(c in byte for c in s) else s.encode()

        return "byte-level", written
    if "WordPiece" in parts:
        prefix = parts["WordPiece"]["prefix"]
        return "wordpiece", lambda s: s.removeprefix(prefix).encode() if s.startswith(prefix) else b" " + s.encode()
    if "BPEDecoder" in parts:
        suffix = parts["BPEDecoder"]["suffix"]
        return "suffix", lambda s: (s.removesuffix(suffix) + " ").encode() if s.endswith(suffix) else s.encode()
    space = parts["Metaspace"]["replacement"] if "Metaspace" in parts else None
    if space is None and "Replace" in parts and parts["Replace"].get("content") == " ":
        space = parts["Replace"]["pattern"].get("String")

    def pieces(s: str) -> bytes:
        found = BYTE.fullmatch(s) if fallback else None
        return bytes([int(found[1], 16)]) if found else (s.replace(space, " ") if space else s).encode()

    fallback = "ByteFallback" in parts
    return "byte-fallback" if fallback else "metaspace" if space else "plain", pieces
