"""Decoding as a homomorphism: the bytes of two rows of tokens are those of one and those of the other.

So a language of bytes that some machine recognises is recognised from tokens by a machine of the same kind; here for brackets.
Source: Geng et al., Byte BPE Tokenization as an Inverse string Homomorphism (arXiv 2412.03160). Whether a row is one that the
tokenizer writes tells :func:`tokensieve.text.proper.is_proper`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from tokensieve.text.loading import open_tokenizer
from tokensieve.text.proper import Spelling

BRACKETS = {"(": ")", "[": "]", "{": "}"}


def decodes_apart(tokenizer: Any, rows: Iterable[Sequence[int]]) -> list[bool]:
    """Whether decoding each row and the next one together gives what both give alone.

    Rows whose bytes are no whole characters are compared as bytes; a decoder that drops a space before a text, or puts one
    between two, gives False.
    """
    opened = open_tokenizer(tokenizer)
    spelling = Spelling(opened)
    out = []
    for left, right in pairwise(rows):
        together = opened.decode([*left, *right], skip_special_tokens=False)
        apart = spelling.joined(left) + spelling.joined(right)
        out.append(together == apart.decode(errors="replace"))
    return out


def balanced(text: str, brackets: Mapping[str, str] = BRACKETS) -> bool:
    """Whether the brackets of a text close each other in order (the Dyck language); other characters count for nothing."""
    return Brackets(brackets).read(text).closed


def balanced_tokens(tokens: Iterable[str], brackets: Mapping[str, str] = BRACKETS) -> bool:
    """The same from tokens alone: each is reduced once to what it closes and what it opens."""
    reduced: dict[str, tuple[str, str]] = {}
    machine = Brackets(brackets)
    for token in tokens:
        if token not in reduced:
            reduced[token] = effect(token, brackets)
        closes, opens = reduced[token]
        machine = machine.read(closes).read(opens)
    return machine.closed


def effect(token: str, brackets: Mapping[str, str] = BRACKETS) -> tuple[str, str]:
    """The brackets that a token closes before it, and those that it leaves open, once those inside it have closed each other.

    A token that closes a bracket wrongly inside itself leaves the wrong one where it stands, and no text is balanced by it.
    """
    closers = set(brackets.values())
    left: list[str] = []
    for c in token:
        if c in closers and left and brackets.get(left[-1]) == c:
            left.pop()
        elif c in closers or c in brackets:
            left.append(c)
    at = next((i for i, c in enumerate(left) if c in brackets), len(left))
    return "".join(left[:at]), "".join(left[at:])


class Brackets:
    """A pushdown machine: what is still open, or that something was closed wrongly."""

    def __init__(self, brackets: Mapping[str, str], stack: tuple[str, ...] = (), wrong: bool = False):
        self._brackets, self._stack, self._wrong = brackets, stack, wrong

    @property
    def closed(self) -> bool:
        """Whether nothing is open."""
        return not self._stack and not self._wrong

    def read(self, text: str) -> Brackets:
        """The machine behind a text."""
        stack, wrong = list(self._stack), self._wrong
        closers = set(self._brackets.values())
        for c in text:
            if c in self._brackets:
                stack.append(self._brackets[c])
            elif c in closers and (not stack or stack.pop() != c):
                wrong = True
        return Brackets(self._brackets, tuple(stack), wrong)
