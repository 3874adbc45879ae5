"""Vectors: those of units of text, and how far a sentence's moves where a word is left out of it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import islice

import torch
from torch import Tensor

from tokensieve.sites.prompt.cutting import Cut

Embed = Callable[[Sequence[str]], Tensor]
"""From texts to their vectors, ``(n, D)``, of length 1."""

AT_ONCE = 1024
"""Texts that are encoded at once."""


class Memory:
    """An encoder that remembers the vectors of texts it has read; the oldest of more than ``most`` go.

    Args:
        embed: the encoder.
    """

    def __init__(self, embed: Embed, most: int = 200_000):
        self.embed, self.most = embed, most
        self._known: dict[str, Tensor] = {}

    def __call__(self, texts: Sequence[str]) -> Tensor:
        fresh = [t for t in dict.fromkeys(texts) if t not in self._known]
        if fresh:
            self._known.update(zip(fresh, encoded(self.embed, fresh), strict=True))
        out = torch.stack([self._known[t] for t in texts])
        for old in list(islice(self._known, max(0, len(self._known) - self.most))):
            del self._known[old]
        return out

    def forget(self) -> None:
        """Forget all texts."""
        self._known.clear()


def encoded(embed: Embed, texts: Sequence[str]) -> Tensor:
    """``(n, D)``: the vectors of texts, read in groups of texts of like length."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    parts = [embed([texts[i] for i in order[k : k + AT_ONCE]]) for k in range(0, len(order), AT_ONCE)]
    return torch.cat(parts)[torch.tensor(order).argsort()]


def shifts(words: Cut, sentences: Cut, embed: Embed) -> Tensor:
    """``(n,)``: one minus the cosine of a sentence's vector with and without each word; 1 for the only word of a sentence.

    Args:
        words, sentences: the same text, cut into both.
        embed: it is asked for each sentence without each of its words.
    """
    starts = [a for a, _ in sentences.spans]
    home = [max(bisect_right(starts, a) - 1, 0) for a, _ in words.spans]
    members: dict[int, list[int]] = {}
    for word, sentence in enumerate(home):
        members.setdefault(sentence, []).append(word)
    wholes, shorter, asked, of = list[str](), list[str](), list[int](), list[int]()
    for own in members.values():
        if len(own) > 1:
            wholes.append(words.join(own))
            for word in own:
                shorter.append(words.join([w for w in own if w != word]))
                asked.append(word)
                of.append(len(wholes) - 1)
    out = torch.ones(len(words.spans))
    if asked:
        # Sentences and what is left of them are read together: in batches of few texts each token costs more.
        vectors = encoded(embed, [*wholes, *shorter])
        full = vectors[: len(wholes)][torch.tensor(of)]
        out[torch.tensor(asked)] = 1 - (vectors[len(wholes) :] * full).sum(1)
    return out
