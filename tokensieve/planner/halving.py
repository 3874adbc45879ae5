"""Successive halving: the cheapest of many candidates that keeps a share of the full model's score, found with few answers.

Knows nothing of what candidates are or what is asked: whoever has something to ask passes a function. How to use it::

    def ask(items, candidates):  # names; the full model is asked whenever this is called
        return {FULL: Replies(scores, 1.0)} | {key: Replies(scores, cost) or "why it cannot" for key in candidates}

    found = search(candidates, items, ask, Terms(goal=0.98, minutes=20), file)
    found.chosen  # the name of a candidate, or None; found.why says why

Candidates come in the order in which they are left out where time does not suffice for all, the last first. Items are drawn in an
order of the seed; the first quarter finds the candidates that are worth asking the rest. On that rest, which the search did not
see, the cheapest is chosen whose share of the full model's score is the goal at least.

At first each candidate is asked a few items. Then, whenever as many more have been asked, half as many candidates are asked the
next: those with the most hope, which is the chance to be the answer: that the goal is kept, and by no cheaper one. A candidate is
compared with the full model item by item (:mod:`tokensieve.planner.kept`).

Everything that was told is written to ``file`` after each call, whole or not at all (:mod:`tokensieve.planner.told`); the same
search goes on from there, and one on other terms is refused by name.

Successive halving: arXiv 1502.07943. Deviations: what is looked for is not the best but the cheapest that is good enough, so that
hope ranks, not the score; candidates with next to none are not asked, and one that was passed over returns when those before it
have failed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from time import perf_counter

from tokensieve.planner.kept import fewest
from tokensieve.planner.told import FULL, NEAR, Answered, Replies, Standing, Terms

__all__ = ["FULL", "Ask", "Outcome", "Replies", "Standing", "Terms", "needed", "search"]

FIRST = 8
"""Items that every candidate is asked."""
TOGETHER = 12
"""Candidates that are asked these at once, at most."""
TRIED = 0.33
"""The share of the time that may go before all of them were."""
SEARCHED = 0.25
"""The share of the items with which candidates are found; the rest judge."""
FINALISTS = 2
"""Candidates that halving leaves."""
HOPELESS = 0.02
"""The chance of being the answer below which a candidate is not asked."""
PLAUSIBLE = 0.1
"""The chance of being the answer from which on a candidate is asked the rest after all, if those that were have failed."""

Ask = Callable[[Sequence[str], Sequence[str]], Mapping[str, Replies | str]]
"""From items and candidates to what each of these and the full model (``FULL``) said; a string is why one cannot be asked."""
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Outcome:
    """What a search has found.

    Attributes:
        chosen: the answer; None where there is none, and ``why`` says why: "few" (items), "wrong" (the full model scores
            nothing), "late" (time ran out before anything could be told), "failed" (no candidate could be asked), "costly"
            (nothing costs less than the full model), "short" (nothing reaches the goal). It is "" where there is an answer.
        needed: with "few" the items that are; with "late" the minutes.
        standings: of the candidates that were asked, the cheapest first.
        untried: candidates that there was no time for.
        left: why candidates could not be asked.
        judges: the items that judged.
        seconds: of asking, over all sittings; answers: that were asked for, the full model's counted.
    """

    chosen: str | None
    why: str
    needed: float
    standings: dict[str, Standing]
    untried: list[str]
    left: dict[str, str]
    judges: list[str]
    seconds: float
    answers: int


def search(
    candidates: Sequence[str],
    items: Sequence[str],
    ask: Ask,
    terms: Terms,
    file: Path,
    step: Progress = lambda done, total, what: None,
    clock: Callable[[], float] = perf_counter,
) -> Outcome:
    """Look for the cheapest candidate that keeps the goal.

    Args:
        candidates, items: names, each once. Candidates that time does not suffice for are left out from the end.
        file: where what was told is kept.
        step: is told how many items of how many were asked, and what is going on.
        clock: seconds, by which the minutes are counted.

    Raises:
        ValueError: there is nothing to choose from, a name occurs twice, or ``file`` holds a search on other terms or is none.
        OSError: it cannot be written; what was told before is intact.
    """
    for what, names in (("candidates", candidates), ("items", items)):
        if len(set(names)) < len(names) or FULL in names:
            raise ValueError(f"{what}: each needs a name of its own, and none may be {FULL!r}")
    if not candidates:
        raise ValueError("candidates is empty; there is nothing to choose from")
    return _Search(candidates, items, ask, terms, file, step, clock).run()


def needed(items: int, terms: Terms) -> int:
    """How many items it takes to tell anything, where so many are too few; 0 where they are not."""
    least = terms.least or fewest(terms.goal)
    return 0 if items - _finding(items) >= least else next(n for n in count() if n - _finding(n) >= least)


def _finding(items: int) -> int:
    """How many of so many items find candidates."""
    return max(FIRST, round(SEARCHED * items))


class _Search:
    def __init__(
        self,
        candidates: Sequence[str],
        items: Sequence[str],
        ask: Ask,
        terms: Terms,
        file: Path,
        step: Progress,
        clock: Callable[[], float],
    ):
        self.ask, self.terms, self.step, self.clock = ask, terms, step, clock
        self.candidates, self.items = list(candidates), random.Random(terms.seed).sample(list(items), len(items))
        self.told = Answered(file, terms, self.candidates, self.items)
        self.least = terms.least or fewest(terms.goal)
        self.found = _finding(len(self.items))
        self.asked: list[str] = []

    def run(self) -> Outcome:
        if few := needed(len(self.items), self.terms):
            return self._end("few", needed=few)
        self._tell(self.items[:FIRST], [])
        if self.told.worthless(self.items[:FIRST]):
            self._tell(self.items, [])
            if self.told.worthless(self.items):
                return self._end("wrong")
        least = self.told.decided("minutes", self._least)
        if least > self.terms.minutes:
            return self._end("late", needed=least)
        self._first()
        done = self._through()
        if self.told.decided(f"late at {done}", self._late) and done < self.found + self.least:
            return self._end("late", needed=self.terms.minutes * len(self.items) / done)
        return self._judged(self.items[self.found : done])

    def _first(self) -> None:
        """The first items, asked of as many candidates as there is time for."""
        for start in range(0, len(self.candidates), TOGETHER):
            if start and self.told.decided(f"late at candidate {start}", lambda: self._late(TRIED)):
                break
            self._tell(self.items[:FIRST], self.candidates[start : start + TOGETHER])
            self.asked = self.candidates[: start + TOGETHER]

    def _through(self) -> int:
        """The other items, asked of fewer and fewer, as long as there is time and hope; how many were asked."""
        done, rung, width = FIRST, 2 * FIRST, max(FINALISTS, math.ceil(len(self.asked) / 2))
        while done < len(self.items) and not self.told.decided(f"late at {done}", self._late):
            some = self.told.decided(f"at {done}", partial(self._hopeful, done, width))
            if not some:
                break
            end = min(self.found if done < self.found else len(self.items), done + self.terms.batch)
            end = min(end, rung) if rung > done else end
            self._tell(self.items[done:end], some)
            done = end
            if done >= rung:
                rung, width = 2 * rung, max(FINALISTS, math.ceil(width / 2))
        return done

    def _hopeful(self, done: int, width: int) -> list[str]:
        """At most ``width`` candidates that are worth asking more, those that were passed over before among them."""
        here = [c for c in self.asked if c not in self.told.left]
        if self.told.worthless(self.items[:done]):
            return here[:width]
        return [c for c, s in self.told.stand(here, self.items[:done]).items() if s.hope >= HOPELESS][:width]

    def _judged(self, judges: Sequence[str]) -> Outcome:
        """The verdict; where all that were asked to the end have failed, the most hopeful of the others are asked after all."""
        gone: set[str] = set()
        while True:
            stand = self._standings(judges)
            good = {
                k: s.held.share for k, s in stand.items() if s.held and s.cost < 1 and s.held.share >= self.terms.goal
            }
            if good:
                # Of those that cost the same, the one that keeps most.
                least = stand[next(iter(good))].cost
                near = [k for k in good if stand[k].cost <= least * (1 + NEAR)]
                return self._end("", max(near, key=good.__getitem__), judges=judges)
            open_ = [k for k, s in stand.items() if s.held is None and k not in gone and k not in self.told.left]
            ahead = [k for k, s in self.told.stand(open_, self.items).items() if s.hope >= PLAUSIBLE][:FINALISTS]
            if not judges or not ahead or self.told.decided(f"late for {ahead[0]}", self._late):
                pays = any(s.cost < 1 for s in stand.values())
                return self._end("short" if pays else "costly" if stand else "failed", judges=judges)
            gone |= set(ahead)
            for start in range(0, len(judges), self.terms.batch):
                self._tell(judges[start : start + self.terms.batch], ahead)
                ahead = [k for k, s in self.told.stand(ahead, self.items).items() if s.seen.chance >= HOPELESS]
                if not ahead:
                    break

    # ---- asking ---------------------------------------------------------------------------------------------------------

    def _tell(self, items: Sequence[str], candidates: Sequence[str]) -> None:
        """Ask what was not told yet, and write it down."""
        for start in range(0, len(items), self.terms.batch):
            some = items[start : start + self.terms.batch]
            todo = [c for c in candidates if c not in self.told.left and not self.told.knows(c, some)]
            if not todo and self.told.knows(FULL, some):
                continue
            self.step(self.items.index(some[0]), len(self.items), f"asking {max(1, len(todo))} plans")
            began = self.clock()
            told = self.ask(some, todo)
            self.told.add(some, told, self.clock() - began)

    def _least(self) -> float:
        """Minutes that one candidate takes through as many items as are needed, if it costs what the full model does."""
        return self.told.seconds / self.told.answers * 2 * (self.found + self.least) / 60

    def _late(self, share: float = 1.0) -> bool:
        """Whether another call like the last one would end behind that share of the time."""
        return self.told.seconds + self.told.last > share * 60 * self.terms.minutes

    # ---- what it comes to -----------------------------------------------------------------------------------------------

    def _standings(self, judges: Sequence[str]) -> dict[str, Standing]:
        """The cheapest first."""
        stand = self.told.stand(self.asked, self.items)
        whole = {k for k in stand if judges and self.told.knows(k, judges)}
        made = {k: replace(s, held=self.told.kept(k, judges)) if k in whole else s for k, s in stand.items()}
        return dict(sorted(made.items(), key=lambda pair: pair[1].cost))

    def _end(self, why: str, chosen: str | None = None, needed: float = 0.0, judges: Sequence[str] = ()) -> Outcome:
        self.told.write()
        untried = [c for c in self.candidates if c not in self.asked]
        told = self.told
        stand = self._standings(judges)
        return Outcome(chosen, why, needed, stand, untried, dict(told.left), list(judges), told.seconds, told.answers)
