"""WordPiece from both ends, over Hangul syllables or the letters that they are made of.

Source: Lee et al., KR-BERT (arXiv 2008.03979), BidirectionalWordPiece. As in their code, of the two ways that is taken whose
pieces' ranks by frequency, sorted, come first: the one with the commonest piece, then the next commonest. Deviation: equal ones
are the forward way's, and words are never lowercased nor stripped of accents.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping

from tokensieve.text.words.segment import Pieces, greedy_prefix, greedy_suffix

UNITS = ("syllable", "jamo")


def spelled(word: str, unit: str = "syllable") -> str:
    """A word in syllables (NFC) or in letters (NFD).

    Raises:
        ValueError: there is no such unit.
    """
    if unit not in UNITS:
        raise ValueError(f"unit is {unit!r}; it must be one of {', '.join(UNITS)}")
    return unicodedata.normalize("NFC" if unit == "syllable" else "NFD", word)


def two_way(word: str, frequencies: Mapping[str, int], unit: str = "syllable", mark: str = "##") -> list[str]:
    """A word's pieces, those that do not begin it with a mark before them.

    Args:
        frequencies: of each piece in the vocabulary; pieces inside a word are written with the mark.

    Raises:
        ValueError: the vocabulary lacks characters of the word.
    """
    ranks = {p: i for i, p in enumerate(sorted(frequencies, key=lambda p: (-frequencies[p], p)))}
    inner = {p.removeprefix(mark): 0.0 for p in frequencies if p.startswith(mark) and p != mark}
    pieces = Pieces({p: 0.0 for p in frequencies if not p.startswith(mark)}, inner)
    ways, problem = [], None
    for segmenter in (greedy_prefix, greedy_suffix):
        try:
            found = segmenter(spelled(word, unit), pieces)
        except ValueError as raised:  # one way can end where the other does not
            problem = raised
            continue
        ways.append([p if i == 0 else mark + p for i, p in enumerate(found)])
    if not ways:
        raise ValueError(str(problem)) from problem
    return min(ways, key=lambda way: sorted(ranks[p] for p in way))


def joined(pieces: list[str], mark: str = "##") -> str:
    """The word of pieces, in syllables."""
    return unicodedata.normalize("NFC", "".join(p.removeprefix(mark) if i else p for i, p in enumerate(pieces)))
