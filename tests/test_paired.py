"""Paired differences: against a plain bootstrap, and what their intervals promise."""

import numpy as np
import pytest

from tokensieve.bench.paired import Difference, interval, paired


def plain(ours, theirs, resamples=4000, seed=1):
    """Questions drawn with their two scores, one resample after another."""
    rng, n = np.random.default_rng(seed), len(ours)
    means = []
    for _ in range(resamples):
        drawn = [int(i) for i in rng.integers(n, size=n)]
        means.append(sum(ours[i] for i in drawn) / n - sum(theirs[i] for i in drawn) / n)
    return np.quantile(means, [0.025, 0.975])


def questions(n, ours, theirs, alike, seed=0):
    """Right and wrong answers of two runs that go together on a share ``alike`` of the questions."""
    rng = np.random.default_rng(seed)
    luck, other = rng.random(n), rng.random(n)
    other = np.where(rng.random(n) < alike, luck, other)
    return (luck < ours).astype(float), (other < theirs).astype(float)


@pytest.mark.parametrize("n", [30, 120])
def test_the_interval_is_that_of_a_plain_bootstrap(n):
    ours, theirs = questions(n, 0.8, 0.6, 0.7)
    found, (low, high) = paired(ours, theirs), plain(ours, theirs)
    assert found.mean == pytest.approx(ours.mean() - theirs.mean())
    assert found.low == pytest.approx(low, abs=1.5 / n)
    assert found.high == pytest.approx(high, abs=1.5 / n)


def test_pairs_tell_more_than_two_runs_apart():
    """What is hard for one is hard for the other: drawn apart, the questions would blur the difference."""
    ours, theirs = questions(100, 0.8, 0.6, 0.95)
    rng = np.random.default_rng(0)
    apart = [ours[rng.integers(100, size=100)].mean() - theirs[rng.integers(100, size=100)].mean() for _ in range(2000)]
    low, high = np.quantile(apart, [0.025, 0.975])
    found = paired(ours, theirs)
    assert found.high - found.low < 0.8 * (high - low)


def test_nineteen_of_twenty_intervals_hold_the_mean(monkeypatch):
    monkeypatch.setattr("tokensieve.bench.paired.RESAMPLES", 499)
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(200):
        low, high = interval(rng.exponential(size=80) - 1, seed=trial)
        held += low <= 0 <= high
    assert 0.88 <= held / 200 <= 0.99


def test_as_many_questions_as_needed_show_the_difference(monkeypatch):
    monkeypatch.setattr("tokensieve.bench.paired.RESAMPLES", 499)
    n, seed = 40, next(s for s in range(50) if paired(*questions(40, 0.6, 0.5, 0.5, s)).mean == pytest.approx(0.1))
    found = paired(*questions(n, 0.6, 0.5, 0.5, seed))
    assert not found.distinguishable
    assert found.needed > n
    shown = [paired(*questions(found.needed, 0.6, 0.5, 0.5, 100 + s)).distinguishable for s in range(60)]
    assert 0.65 <= np.mean(shown) <= 0.95


def test_words_and_what_cannot_be_told():
    sure = paired([1.0] * 20 + [0.0], [0.0] * 21)
    assert sure.distinguishable
    assert sure.words(100).startswith("+95.2 [+")
    assert sure.needed is None
    equal = paired([1.0, 0.0, 1.0], [1.0, 0.0, 1.0])
    assert (equal.mean, equal.needed, equal.words()) == (0.0, None, "not distinguishable")
    few = paired([1.0] * 5, [0.0] * 5)  # one coin in sixteen does that
    assert (few.low, few.high, few.distinguishable, few.needed) == (None, None, False, 6)
    assert paired([1.0] * 6, [0.0] * 6).distinguishable
    assert Difference.from_json(sure.to_json()) == sure
    assert paired([1, 2, 3.5], [0, 1, 1]) == paired([1, 2, 3.5], [0, 1, 1])
    with pytest.raises(ValueError, match="3 and 2 values"):
        paired([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="one at least"):
        paired([], [])
