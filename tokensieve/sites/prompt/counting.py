"""Counting: the tokens that a text costs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from tokenizers import Tokenizer

LAST = 8
"""Texts whose counts are remembered: the same ones are asked for again and again."""


class TokenCounter:
    """Counts the tokens of texts; what looks like a control token counts as the text that it is.

    Args:
        tokenizer: it becomes the counter's own: it no longer reads control tokens in texts.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._tokenizer.encode_special_tokens = True
        self._one = lru_cache(LAST)(lambda text: self.each([text])[0])

    def each(self, texts: Sequence[str]) -> list[int]:
        """The tokens of each text by itself, without special ones."""
        return [len(e) for e in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def __call__(self, text: str) -> int:
        """The tokens of a text."""
        return self._one(text)
