"""LiB: a lexicon learned while reading, of units that make a text shortest, from parts of words to phrases.

Source: Yang et al., Rethinking Tokenization: Crafting Better Tokenizers for Large Language Models (arXiv 2403.00417); Yang, Frank
and van den Bosch, Less is Better (2020). A unit is what the longest match finds. Neighbours are memorised together by chance, on
probation; a unit is held against the next shorter match where both ways come together again, and rises where it saves units,
sinks where it does not; what sinks to the end, or is not met again in time, is forgotten. Deviations: a unit's place is a number
that moves by a step, once for each text, instead of a place in a list that moves by a share of it; the neighbours of a unit on
probation are not inspected.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Lexicon:
    """Units by their standing, the best first; single characters are always among them.

    Attributes:
        units: in that order.
    """

    units: tuple[str, ...]

    def segment(self, text: str) -> list[str]:
        """A text in units, by the longest match from the left; characters that are none stand alone."""
        return _matched(text, set(self.units), max(map(len, self.units), default=1))

    def best(self, size: int) -> Lexicon:
        """The single characters and the best of the others, so many together.

        Raises:
            ValueError: ``size`` is below the single characters.
        """
        single = [u for u in self.units if len(u) == 1]
        if size < len(single):
            raise ValueError(f"size is {size}; the lexicon has {len(single)} single characters, which stay")
        return Lexicon((*single, *[u for u in self.units if len(u) > 1][: size - len(single)]))


def learn(
    texts: Sequence[str],
    memorize: float = 0.25,
    forget: float = 1e-4,
    life: int = 10,
    longest: int = 16,
    rounds: int = 1,
    seed: int = 0,
) -> Lexicon:
    """Read texts and learn a lexicon.

    Args:
        texts: sentences, lines or pages, each read in one step.
        memorize: probability that two neighbours are memorised as one (alpha of the paper).
        forget: share of the lexicon's end put on probation behind each step (omega).
        life: steps of probation (tau). A unit that is not met again in them is forgotten.
        longest: characters of a unit at most; rounds: how often the texts are read.

    Raises:
        ValueError: an argument out of range, or no text.
    """
    if not 0 <= memorize <= 1 or not 0 <= forget <= 1 or life < 1 or longest < 2:
        raise ValueError(
            f"memorize={memorize}, forget={forget}, life={life}, longest={longest}; the first two must lie in "
            "0..1, life be at least 1 and longest at least 2"
        )
    if not any(texts):
        raise ValueError("texts hold no character; give some text")
    generator = random.Random(seed)
    places = {c: 0 for text in texts for c in text}
    probation: dict[str, int] = {}
    for _ in range(rounds):
        for text in texts:
            fresh, moves = _read(text, places, longest, memorize, generator, probation)
            last = max(places.values())
            for unit in fresh:
                places.setdefault(unit, last + 1)
                probation[unit] = life + 1
            for unit, total in moves.items():
                places[unit] += (total > 0) - (total < 0)
            many = (u for u in places if len(u) > 1)
            for unit in heapq.nlargest(int(forget * len(places)), many, key=places.__getitem__):
                probation.setdefault(unit, life + 1)
            for unit in list(probation):
                probation[unit] -= 1
                if probation[unit] < 1:
                    del probation[unit], places[unit]
    return Lexicon(tuple(sorted(places, key=lambda u: (places[u], u))))


def _read(
    text: str,
    places: dict[str, int],
    longest: int,
    memorize: float,
    generator: random.Random,
    probation: dict[str, int],
) -> tuple[list[str], Counter[str]]:
    """What a text gives to memorise, and which units rise (below 0) or sink (above); units met again leave their probation."""
    row = _matched(text, places, longest)
    fresh, moves, at = [], Counter[str](), 0
    for i, unit in enumerate(row):
        probation.pop(unit, None)
        if i and len(row[i - 1]) + len(unit) <= longest and generator.random() < memorize:
            fresh.append(row[i - 1] + unit)
        if len(unit) > 1:
            moves[unit] += 1 if _shorter_is_better(text, at, row[i:], places, longest) else -1
        at += len(unit)
    return [u for u in fresh if u not in places], moves


def _shorter_is_better(text: str, start: int, row: Sequence[str], places: dict[str, int], longest: int) -> bool:
    """Whether the next shorter match at a place needs fewer units until both ways come together, or as few of better places."""
    size = next(n for n in range(len(row[0]) - 1, 0, -1) if text[start : start + n] in places or n == 1)
    own, other = [row[0]], [text[start : start + size]]
    a, b, i = start + len(row[0]), start + size, 1
    while a != b:
        if b < a:
            other.append(_match(text, b, places, longest))
            b += len(other[-1])
        else:
            own.append(row[i])
            a += len(row[i])
            i += 1
    if len(own) != len(other):
        return len(other) < len(own)
    return sum(places[u] for u in other) < sum(places[u] for u in own)


def _match(text: str, at: int, units: Container[str], longest: int) -> str:
    for size in range(longest, 1, -1):
        if text[at : at + size] in units:
            return text[at : at + size]
    return text[at]


def _matched(text: str, units: Container[str], longest: int) -> list[str]:
    out, at = [], 0
    while at < len(text):
        out.append(_match(text, at, units, longest))
        at += len(out[-1])
    return out
