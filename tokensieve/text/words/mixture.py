"""What a byte-pair tokenizer was trained on, told by the order of its merges.

Source: Hayase et al., Data Mixture Inference (arXiv 2407.16607): at each step the merge that was made must have been the
commonest pair of the mixture, which bounds the shares; a linear program finds those that break the fewest bounds. Deviation: of
the pairs that were not made only the commonest of each category are compared at a step, instead of adding broken bounds until
none is left.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import csr_matrix

from tokensieve.text.merges import Merge


class _Text:
    """One category's words, merged step by step."""

    def __init__(self, words: Mapping[str, int]):
        self.rows = [list(w) for w in words]
        self.counts = list(words.values())
        self.size = sum(len(w) * n for w, n in words.items())
        self.pairs: Counter[Merge] = Counter()
        self._where: defaultdict[Merge, set[int]] = defaultdict(set)
        for i in range(len(self.rows)):
            self._count(i, 1)

    def _count(self, i: int, sign: int) -> None:
        for pair in pairwise(self.rows[i]):
            self.pairs[pair] += sign * self.counts[i]
            if sign > 0:
                self._where[pair].add(i)

    def merge(self, pair: Merge) -> None:
        """Join a pair wherever it stands."""
        for i in self._where.pop(pair, ()):
            self._count(i, -1)
            old, new, at = self.rows[i], [], 0
            while at < len(old):
                size = 2 if tuple(old[at : at + 2]) == pair else 1
                new.append("".join(old[at : at + size]))
                at += size
            self.rows[i] = new
            self._count(i, 1)
        self.pairs.pop(pair, None)


def mixture(merges: Sequence[Merge], categories: Mapping[str, Mapping[str, int]], rivals: int = 20) -> dict[str, float]:
    """The share of each category in the text that merges were learned from, by characters as the vocabulary spells them.

    Args:
        merges: in their order (:func:`tokensieve.text.merges.merges_of`); the first few hundred say most.
        categories: samples of each, as words and how often they occur (:func:`tokensieve.text.words.counts.word_counts`).
        rivals: the commonest pairs of each category that a merge is held against.

    Returns:
        shares that sum to 1. They are an estimate, and only of what is named: text of no category goes to the nearest.

    Raises:
        ValueError: there are no merges, fewer than 2 categories, or one without words.
    """
    texts = [_Text(words) for words in categories.values()]
    if not merges or len(texts) < 2 or not all(t.size for t in texts):
        raise ValueError(
            f"{len(merges)} merges and words of {len(texts)} categories ({', '.join(categories)}); there must be at least one "
            "merge and 2 categories, each with words"
        )
    rows: list[list[float]] = []
    steps: list[int] = []
    names: dict[Merge, int] = {}
    slack: list[int] = []
    for step, made in enumerate(merges):
        others = {p for t in texts for p in heapq.nlargest(rivals, t.pairs, key=t.pairs.__getitem__)} - {made}
        for other in sorted(others):
            rows.append([(t.pairs[other] - t.pairs[made]) / t.size for t in texts])
            steps.append(step)
            slack.append(names.setdefault(other, len(names)))
        for t in texts:
            t.merge(made)
    return dict(zip(categories, _solved(np.array(rows), steps, slack, len(merges), len(names)), strict=True))


def _solved(gaps: np.ndarray, steps: list[int], slack: list[int], n_steps: int, n_pairs: int) -> list[float]:
    """The shares (K,) for which gaps @ shares exceeds the slack of its step and of its pair least."""
    bounds, k = gaps.shape
    at = np.arange(bounds)
    columns = np.concatenate([np.tile(np.arange(k), bounds), k + np.array(steps), k + n_steps + np.array(slack)])
    lines = np.concatenate([np.repeat(at, k), at, at])
    values = np.concatenate([gaps.ravel(), -np.ones(2 * bounds)])
    above = csr_matrix((values, (lines, columns)), shape=(bounds, k + n_steps + n_pairs))
    cost = np.concatenate([np.zeros(k), np.ones(n_steps + n_pairs)])
    whole = csr_matrix((np.ones(k), (np.zeros(k, int), np.arange(k))), shape=(1, len(cost)))
    found = linprog(cost, A_ub=above, b_ub=np.zeros(bounds), A_eq=whole, b_eq=[1.0], method="highs")
    if not found.success:
        raise RuntimeError(f"the linear program of shares was not solved: {found.message}")
    shares = np.clip(found.x[:k], 0, None)
    return (shares / shares.sum()).tolist()
