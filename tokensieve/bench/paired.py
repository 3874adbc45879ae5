"""Paired statistics: how sure a difference between two runs over the same questions is, and how many would make it sure.

The one place for it: the bench, the leaderboards and whatever chooses among plans ask here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

LEVEL = 0.95
"""Of every interval."""
POWER = 0.8
"""How likely a true difference is to show with as many questions as :attr:`Difference.needed` says."""
FEWEST = 6
"""Questions from which on an interval is told: of five that all say the same, chance alone says so in one of 16 cases."""
RESAMPLES = 9_999
HELD = 2_000_000
"""Numbers drawn at once."""


@dataclass(frozen=True)
class Difference:
    """Ours less theirs, over the same questions.

    Attributes:
        mean: over the questions.
        low, high: the percentile bootstrap interval of that mean at the level ``LEVEL``, questions drawn in pairs; None with
            fewer than ``FEWEST``.
        count: questions.
        needed: how many questions like these would show a difference of this size, in ``POWER`` of the times they are asked;
            None where it shows already, or where there is none to be shown.
    """

    mean: float
    low: float | None
    high: float | None
    count: int
    needed: int | None

    @property
    def distinguishable(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Difference:
        return cls(**data)

    def words(self, scale: float = 1.0, digits: int = 1) -> str:
        """The difference as it stands in tables: its interval, or that there is none to be told."""
        if not self.distinguishable:
            return "not distinguishable"
        assert self.low is not None
        assert self.high is not None
        mean, low, high = (f"{scale * x:+.{digits}f}" for x in (self.mean, self.low, self.high))
        return f"{mean} [{low}, {high}]"


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float] | None:
    """The percentile bootstrap interval of a mean at the level ``LEVEL``; None with fewer than ``FEWEST`` values.

    Args:
        seed: for the questions that are drawn.
    """
    if len(values) < FEWEST:
        return None
    x, rng = np.asarray(values, dtype=float), np.random.default_rng(seed)
    step = max(1, HELD // len(x))
    sizes = [min(step, RESAMPLES - done) for done in range(0, RESAMPLES, step)]
    means = np.concatenate([x[rng.integers(len(x), size=(size, len(x)))].mean(1) for size in sizes])
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def paired(ours: Sequence[float], theirs: Sequence[float], seed: int = 0) -> Difference:
    """The difference of two runs, question by question.

    Raises:
        ValueError: they are not of the same questions: their numbers differ, or there is none.
    """
    if len(ours) != len(theirs) or not len(ours):
        raise ValueError(
            f"{len(ours)} and {len(theirs)} values; a paired difference needs both of every question, and one at least"
        )
    each = np.asarray(ours, dtype=float) - np.asarray(theirs, dtype=float)
    mean, found = float(each.mean()), interval(each, seed)
    low, high = found or (None, None)
    shown = Difference(mean, low, high, len(each), None)
    spread = float(each.std(ddof=1)) if len(each) > 1 else 0.0
    if shown.distinguishable or mean == 0:
        return shown
    normal = NormalDist()
    reach = (normal.inv_cdf((1 + LEVEL) / 2) + normal.inv_cdf(POWER)) * spread / mean
    # An interval that holds 0 says that these were too few, whatever the normal distribution says.
    return Difference(mean, low, high, len(each), max(FEWEST, len(each) + 1, math.ceil(reach**2)))
