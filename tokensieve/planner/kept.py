"""Kept: the share of the full model's score that a candidate keeps, its interval, and the chance that it is the goal at least."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from tokensieve.bench.paired import LEVEL

DRAWS = 2_000
UNSEEN = 0.5
"""Items that weigh in as lost, and as many as won, beside those that were asked: that nothing broke so far does not say that
nothing ever will (Jeffreys' prior, for answers that are right or wrong)."""


@dataclass(frozen=True)
class Kept:
    """A share of the full model's score.

    Attributes:
        share: what was measured.
        low, high: its interval at the level ``tokensieve.bench.paired.LEVEL``.
        chance: that the share over all items like these is the goal at least.
        count: items.
    """

    share: float
    low: float
    high: float
    chance: float
    count: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def kept(ours: Sequence[float], full: Sequence[float], goal: float, spread: float, seed: int = 0) -> Kept:
    """The sum of a candidate's scores over that of the full model's, on the same items.

    The interval and the chance are those of a Bayesian bootstrap (Rubin 1981) over the items, with ``UNSEEN`` lost and won.

    Args:
        goal: the share that is asked for.
        spread: how much a lost item loses: the largest difference of one item's scores that was seen of any candidate.

    Raises:
        ValueError: there is no item, or the full model scores nothing, so that there is no share.
    """
    if len(ours) != len(full) or not len(full):
        raise ValueError(f"{len(ours)} and {len(full)} scores; a share needs both of every item, and one at least")
    a, b = np.asarray(ours, dtype=float), np.asarray(full, dtype=float)
    if b.sum() <= 0:
        raise ValueError(f"the full model scores {b.sum():g} on these {len(b)} items; there is nothing to keep")
    usual = b.mean()
    a, b = np.append(a, [usual - spread, usual + spread]), np.append(b, [usual, usual])
    weights = _weights(len(full), seed)
    drawn = (weights @ a) / (weights @ b)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    share = float(np.sum(ours) / np.sum(full))
    return Kept(share, float(low), float(high), float((drawn >= goal).mean()), len(full))


@lru_cache(maxsize=8)
def _weights(count: int, seed: int) -> np.ndarray:
    """``(DRAWS, count + 2)``: how often each item counts; the same for all candidates, which are compared."""
    shape = np.append(np.ones(count), [UNSEEN, UNSEEN])
    return np.random.default_rng(seed).standard_gamma(shape, size=(DRAWS, count + 2))


def fewest(goal: float) -> int:
    """Items from which on a share near a goal can be told at all: as many as make one lost item no more than what may be lost.

    More than 200 are never asked for: of these, one lost is half a percent.
    """
    return 200 if goal >= 0.995 else max(20, round(1 / (1 - goal)))


def sure(goal: float) -> int:
    """Items of which none may be lost for the chance of the goal to be ``LEVEL``."""
    return int(np.ceil(np.log(1 - LEVEL) / np.log(min(goal, 0.999))))
