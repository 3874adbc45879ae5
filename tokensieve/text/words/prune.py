"""Vocabularies made smaller where it costs the fewest tokens.

Source: Schmidt et al., Tokenization Is More Than Compression (arXiv 2402.18376), section 4.2: each token's loss is counted over
the shortest paths of all words, and the tokens that lose least go, some at a time. Like theirs, a token's loss is that of leaving
it out at one place; where a word holds it twice, or a vocabulary lacks several at once, the true loss can be larger.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping

from tokensieve.text.words.segment import Pieces, fewest


def losses(words: Mapping[str, int], pieces: Pieces) -> Counter[str]:
    """How many more tokens the words need without each token that they hold.

    Args:
        words: and how often each occurs.
    """
    out: Counter[str] = Counter()
    for word, count in words.items():
        ahead, behind = _ahead(word, pieces), _behind(word, pieces)
        at = 0
        for piece in fewest(word, pieces):
            end = at + len(piece)
            # Another way either stops inside the piece or steps over it by a longer one.
            other = min((ahead[k] + behind[k] for k in range(at + 1, end)), default=math.inf)
            for start in range(max(0, end - pieces.longest), at + 1):
                for stop in range(end, min(len(word), start + pieces.longest) + 1):
                    if (start, stop) != (at, end) and pieces.weight(word, start, stop) is not None:
                        other = min(other, ahead[start] + 1 + behind[stop])
            if len(piece) > 1:
                out[piece] += int(min(other - ahead[-1], len(piece) - 1)) * count
            at = end
    return out


def _ahead(word: str, pieces: Pieces) -> list[float]:
    """The fewest pieces up to each place of a word."""
    out = [0.0]
    for end in range(1, len(word) + 1):
        starts = range(max(0, end - pieces.longest), end)
        out.append(min((out[s] + 1 for s in starts if pieces.weight(word, s, end) is not None), default=math.inf))
    return out


def _behind(word: str, pieces: Pieces) -> list[float]:
    """The fewest pieces from each place of a word to its end."""
    out = [0.0] * (len(word) + 1)
    for start in reversed(range(len(word))):
        ends = range(start + 1, min(len(word), start + pieces.longest) + 1)
        out[start] = min((out[e] + 1 for e in ends if pieces.weight(word, start, e) is not None), default=math.inf)
    return out


def pruned(words: Mapping[str, int], vocabulary: Iterable[str], size: int, share: float = 0.1) -> list[str]:
    """A vocabulary of so many tokens, by taking those away whose loss is smallest; single characters stay.

    Args:
        words: and how often each occurs, spelled as the vocabulary spells them.
        share: of the tokens that have to go, how many go at once before losses are counted anew.

    Returns:
        the tokens left, in the vocabulary's order.

    Raises:
        ValueError: ``size`` is below the single characters or above the vocabulary, or ``share`` is not in (0, 1].
    """
    kept = dict.fromkeys(vocabulary, 0.0)
    fixed = sum(len(t) == 1 for t in kept)
    if not fixed <= size <= len(kept):
        raise ValueError(
            f"size is {size}; it must lie between the {fixed} single characters and the {len(kept)} tokens"
        )
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}; it must lie above 0 and at most at 1")
    each = max(1, math.ceil((len(kept) - size) * share))
    while len(kept) > size:
        lost = losses(words, Pieces(kept, kept))
        going = sorted((t for t in kept if len(t) > 1), key=lambda t: (lost[t], len(t), t))
        for t in going[: min(each, len(kept) - size)]:
            del kept[t]
    return list(kept)
