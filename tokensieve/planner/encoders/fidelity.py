"""Fidelity: how near what an encoder says under a plan is to what it says in full, item by item; no labels are needed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from tokensieve.planner.encoders.subject import EncoderOutput

MEASURES = ("cosine", "neighbours", "tokens", "answer", "wer", "labels")
"""cosine: of the pooled output; neighbours: the share of the nearest items that are the same; tokens: the mean cosine of the
states behind the blocks; answer: whether the head says the same; wer: one less the word error rate against what is heard in
full; labels: whether the head says the label."""


def measured(
    full: EncoderOutput, ours: EncoderOutput, names: Sequence[str], near: Neighbours | None
) -> list[dict[str, float]]:
    """Of each item of a batch every measure that the model has, 1 where nothing is lost."""
    cosine = (full.pooled * ours.pooled).sum(1).clamp(0, 1)
    out = []
    for i, name in enumerate(names):
        row = {"cosine": float(cosine[i]), "tokens": _tokens(full.tokens[i], ours.tokens[i])}
        if near is not None:
            row["neighbours"] = near.agreement(name, ours.pooled[i])
        if full.answer[i] is not None:
            row["answer"] = float(full.answer[i] == ours.answer[i])
        if full.words[i] is not None:
            row["wer"] = max(0.0, 1 - word_errors(full.words[i] or "", ours.words[i] or ""))
        out.append(row)
    return out


def _tokens(full: Tensor, ours: Tensor) -> float:
    return float(cosine_similarity(full, ours, dim=-1).mean().clamp(0, 1)) if full.shape == ours.shape else 0.0


class Neighbours:
    """The nearest of all items by the full model's vectors.

    Args:
        names: of all items; vectors: ``(N, D)`` of length 1.
    """

    def __init__(self, names: Sequence[str], vectors: Tensor):
        self.at = {name: i for i, name in enumerate(names)}
        self.vectors, self.count = vectors, min(10, max(1, len(names) // 10))

    def agreement(self, name: str, vector: Tensor) -> float:
        """How many of an item's nearest are still its nearest, its own vector being another."""
        i = self.at[name]
        return len(self._nearest(self.vectors[i], i) & self._nearest(vector, i)) / self.count

    def _nearest(self, vector: Tensor, own: int) -> set[int]:
        score = self.vectors @ vector
        score[own] = -torch.inf
        return set(score.topk(min(self.count, len(score) - 1)).indices.tolist())


def word_errors(reference: str, heard: str) -> float:
    """The word error rate: words to insert, leave out or change, over those of the reference; case and punctuation are none."""
    a, b = words(reference), words(heard)
    if not a:
        return float(bool(b))
    before = list(range(len(b) + 1))
    for i, word in enumerate(a, 1):
        now = [i]
        for j, other in enumerate(b, 1):
            now.append(min(before[j] + 1, now[j - 1] + 1, before[j - 1] + (word != other)))
        before = now
    return before[-1] / len(a)


def words(text: str) -> list[str]:
    """The words of a text, without case and punctuation."""
    return "".join(c.lower() if c.isalnum() or c == "'" else " " for c in text).split()
