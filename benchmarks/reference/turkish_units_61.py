"""Linguistic integrity of a tokenizer (arXiv 2502.07057): which of its tokens are words of a language, and which pure units.

The paper counts a token as a valid word where a morphological analyser knows it, and as pure where it is one root or one suffix.
Here both are lists that the caller gives; words and suffixes of a vocabulary are not the package's business.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Integrity:
    """Shares of a text's distinct tokens.

    Attributes:
        valid: that are words of the language (%TR); pure: that are one unit of meaning, a root or an affix (%Pure).
        tokens, distinct: how many tokens the text takes, and how many different ones.
    """

    valid: float
    pure: float
    tokens: int
    distinct: int


def linguistic(tokens: Sequence[str], words: Collection[str], units: Collection[str]) -> Integrity:
    """Judge the tokens of a text.

    Args:
        tokens: as text, in order; spaces around them and case do not count, and tokens without a letter are left out.
        words: of the language, in lower case; units: roots and affixes, likewise.
    """
    kept = [t.strip().lower() for t in tokens]
    kept = [t for t in kept if any(c.isalpha() for c in t)]
    kinds = set(kept)
    share = 1 / max(len(kinds), 1)
    return Integrity(share * len(kinds & set(words)), share * len(kinds & set(units)), len(kept), len(kinds))
