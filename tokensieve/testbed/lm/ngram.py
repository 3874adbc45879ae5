"""The model to beat: an interpolated modified Kneser-Ney n-gram model over the same tokens."""

import numpy as np

BITS = 11  # of a token id; five of them fit into an int64


class KneserNey:
    """Chen and Goodman's interpolated modified Kneser-Ney, counted with sorted arrays.

    `KneserNey(ids)` counts a row of token ids below 2 ** 11; `log2(ids)` gives the log2 probability of each token of
    another row, given up to `order - 1` before it.
    """

    def __init__(self, ids: np.ndarray, vocabulary: int, order: int = 5):
        if vocabulary > 1 << BITS:
            raise ValueError(f"vocabulary={vocabulary} is too large: at most {1 << BITS} token ids can be packed")
        self.order, self.vocabulary = order, vocabulary
        self.levels = []
        grams, counts = np.unique(_pack(ids, order), return_counts=True)
        for n in range(order, 0, -1):
            self.levels.append(_Level(grams, counts))
            # Below the top, a gram counts once for every different token seen before it.
            grams, counts = np.unique(grams & ((1 << BITS * (n - 1)) - 1), return_counts=True)
        self.levels.reverse()

    def log2(self, ids: np.ndarray) -> np.ndarray:
        probability = np.full(len(ids), 1.0 / self.vocabulary)
        for n, level in enumerate(self.levels, 1):
            if len(ids) >= n:
                probability[n - 1 :] = level.refine(_pack(ids, n), probability[n - 1 :])
        return np.log2(probability)


class _Level:
    """The grams of one length, their discounts, and the totals of their histories."""

    def __init__(self, grams: np.ndarray, counts: np.ndarray):
        self.grams = grams
        seen = [max(1, int((counts == k).sum())) for k in (1, 2, 3, 4)]
        rate = seen[0] / (seen[0] + 2 * seen[1])
        by_count = np.array([0.0] + [k - (k + 1) * rate * seen[k] / seen[k - 1] for k in (1, 2, 3)])
        discount = np.clip(by_count, 0, np.arange(4))[np.minimum(counts, 3)]
        self.kept = counts - discount
        self.histories, first = np.unique(grams >> BITS, return_index=True)
        self.totals = np.add.reduceat(counts, first)
        self.freed = np.add.reduceat(discount, first)

    def refine(self, grams: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """The probability of the last token of each gram, from that with a history shorter by one."""
        at, known = _find(self.grams, grams)
        kept = np.where(known, self.kept[at], 0.0)
        at, met = _find(self.histories, grams >> BITS)
        return np.where(met, (kept + self.freed[at] * lower) / self.totals[at], lower)


def _pack(ids: np.ndarray, n: int) -> np.ndarray:
    """All n-grams of the row, one int64 each, the last token in the lowest bits."""
    packed = np.zeros(len(ids) - n + 1, dtype=np.int64)
    for i in range(n):
        packed = packed << BITS | ids[i : len(ids) - n + 1 + i].astype(np.int64)
    return packed


def _find(table: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    at = np.minimum(np.searchsorted(table, wanted), len(table) - 1)
    return at, table[at] == wanted
