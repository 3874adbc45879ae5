"""Whether words that readers find easy are those that a tokenizer leaves whole.

Source: Beinborn and Pinter, Analyzing Cognitive Plausibility of Subword Tokenization (arXiv 2310.13348).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np


def chunkability(word: str, pieces: Sequence[str]) -> float:
    """1 less the pieces for each character: 0 for single characters, near 1 for a long word that stays whole.

    Raises:
        ValueError: the word is empty.
    """
    if not word:
        raise ValueError("word is empty, and has no pieces for each character")
    return 1.0 - len(pieces) / len(word)


@dataclass(frozen=True)
class Plausibility:
    """How chunkability goes with responses.

    Attributes:
        correlation: Pearson's, in -1..1; pvalue: of a correlation as large by chance, two-sided, by 1,000 shuffled tables.
        words: how many there were.
    """

    correlation: float
    pvalue: float
    words: int


def plausibility(cut: Callable[[str], Sequence[str]], responses: Mapping[str, float], seed: int = 0) -> Plausibility:
    """Correlate chunkability with responses.

    Args:
        cut: a word's pieces; responses: of each word, such as its mean time (a plausible tokenizer correlates below 0) or the
            share of readers who knew it (above 0).

    Raises:
        ValueError: fewer than 3 words, a response that is not finite, or all words or responses alike.
    """
    x = np.array([chunkability(w, cut(w)) for w in responses])
    y = np.array(list(responses.values()), float)
    if len(x) < 3 or not np.isfinite(y).all():
        raise ValueError(f"responses has {len(x)} words; it needs at least 3, each with a finite response")
    if not np.ptp(x) or not np.ptp(y):
        raise ValueError("all words have one chunkability, or all one response; nothing can be correlated")
    x, y = (x - x.mean()) / x.std(), (y - y.mean()) / y.std()
    found = float((x * y).mean())
    generator = np.random.default_rng(seed)
    shuffled = np.array([(generator.permutation(x) * y).mean() for _ in range(1000)])
    return Plausibility(found, float((1 + (np.abs(shuffled) >= abs(found)).sum()) / 1001), len(x))


def coverage(pieces: Collection[str], morphemes: Collection[str]) -> float:
    """The share of morphemes that are pieces of a vocabulary.

    Raises:
        ValueError: there are none.
    """
    if not morphemes:
        raise ValueError("morphemes is empty; give those of the language")
    return sum(m in pieces for m in morphemes) / len(morphemes)
