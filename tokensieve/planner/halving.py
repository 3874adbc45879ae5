"""Successive halving: the cheapest of many candidates that keeps a share of the full model's score, found with few answers.

Knows nothing of what candidates are or what is asked: whoever has something to ask passes a function. How to use it::

    def ask(items, candidates):  # names; the full model is asked whenever this is called
        return {FULL: Replies(scores, 1.0)} | {key: Replies(scores, cost) or "why it cannot" for key in candidates}

    found = search(candidates, items, ask, Terms(goal=0.98, minutes=20), file)
    found.chosen  # the name of a candidate, or None; found.why says why

Candidates come in the order in which they are left out where time does not suffice for all, the last first. Items are drawn in an
order of the seed. The first of them find the candidates that are worth asking the rest: half of the items at most, fewer where it
is clear earlier. On that rest, which the search did not see, and on all together, the cheapest is chosen whose share of the full
model's score is the goal at least.

At first each candidate is asked a few items. Then half as many are asked as many more, and so on: those with the most hope. That
is the chance that a candidate keeps the goal, times how little is said for cheaper ones: one that more likely keeps the goal than
not stands before those that cost more. A candidate is compared with the full model item by item (:mod:`tokensieve.planner.kept`).

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
from pathlib import Path
from time import perf_counter

from tokensieve.planner.kept import fewest
from tokensieve.planner.told import FULL, NEAR, Answered, Replies, Standing, Terms

__all__ = ["FULL", "Ask", "Outcome", "Replies", "Standing", "Terms", "needed", "search"]

FIRST = 8
"""Items that every candidate is asked."""
TOGETHER = 24
"""Candidates that are asked these at once, at most."""
TRIED = 0.33
"""The share of the time that may go before all of them were."""
NARROW = 4
"""Candidates that halving leaves; they may be others each time."""
FINALISTS = 2
"""Candidates that are asked to the end."""
SETTLED = 0.6
"""The hope of one candidate at which it is asked alone."""
JUDGED = 1.5
"""The time that a candidate is judged in, for as many items as it takes, as a multiple of the full model's alone."""
HOPELESS = 0.02
"""The hope below which a candidate is not asked."""
PLAUSIBLE = 0.1
"""The hope from which on a candidate is asked the items that judge after all, if those that were have failed."""

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
    return 0 if items >= FIRST + least else FIRST + least


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
        found = self._find()
        return self._judged(self.items[found : self._ask_on(found)])

    def _first(self) -> None:
        """The first items, asked of as many candidates as there is time for."""
        for start in range(0, len(self.candidates), TOGETHER):
            if start and self.told.decided(f"late at candidate {start}", lambda: self._late(TRIED)):
                break
            self._tell(self.items[:FIRST], self.candidates[start : start + TOGETHER])
            self.asked = self.candidates[: start + TOGETHER]

    def _find(self) -> int:
        """A few more items at a time, asked of fewer and fewer, until one is likely to be the answer; how many were asked."""
        done, width = FIRST, math.ceil(len(self.asked) / 2)
        most = min(len(self.items) // 2, len(self.items) - self.least)
        while done + FIRST <= most and not self.told.decided(f"late at {done}", self._late_to_judge):
            some, settled = self.told.decided(f"at {done}", partial(self._hopeful, done, width))
            if settled or not some:
                break
            self._tell(self.items[done : done + FIRST], some)
            done, width = done + FIRST, max(NARROW, math.ceil(width / 2))
        return done

    def _ask_on(self, found: int) -> int:
        """All other items, asked of one finalist after another, as long as there is time and hope; how many were asked."""
        done = found
        while done < len(self.items) and not self.told.decided(f"late after {done}", self._late):
            some = self.told.decided(f"after {done}", partial(self._finalists, done))
            if not some:
                break
            self._tell(self.items[done : done + self.terms.batch], some)
            done = min(len(self.items), done + self.terms.batch)
        return done

    def _finalists(self, done: int) -> list[str]:
        """The most hopeful of those that may still keep the goal."""
        here = [c for c in self.asked if c not in self.told.left]
        stand = self.told.stand(here, self.items[:done])
        return [k for k, s in stand.items() if s.hope >= HOPELESS and s.seen.chance >= PLAUSIBLE][:FINALISTS]

    def _hopeful(self, done: int, width: int) -> tuple[list[str], bool]:
        """At most ``width`` candidates that are worth asking more, those that were passed over before among them; and whether the
        first is likely to be the answer."""
        here = [c for c in self.asked if c not in self.told.left]
        if self.told.worthless(self.items[:done]):
            return here[:width], False
        stand = self.told.stand(here, self.items[:done])
        hoped = [c for c, s in stand.items() if s.hope >= HOPELESS]
        return hoped[:width], bool(hoped) and stand[hoped[0]].hope >= SETTLED

    def _judged(self, judges: Sequence[str]) -> Outcome:
        """The verdict; where all that were asked to the end have failed, the most hopeful of the others are asked after all."""
        gone: set[str] = set()
        while True:
            stand = self._standings(judges)
            good = {
                k: s.held.share
                for k, s in stand.items()
                if s.held is not None and s.cost < 1 and min(s.held.share, s.seen.share) >= self.terms.goal
            }
            if good:
                # Of those that cost the same, the one that keeps most.
                least = stand[next(iter(good))].cost
                near = [k for k in good if stand[k].cost <= least * (1 + NEAR)]
                chosen = max(near, key=good.__getitem__)
                missing = [i for i in judges if not self.told.knows(chosen, [i])]
                if not missing or self.told.decided(f"late for {chosen}, {len(missing)}", self._late):
                    return self._end("", chosen, judges=judges)
                self._tell(missing[: self.terms.batch], [chosen])
                continue
            open_ = [k for k, s in stand.items() if s.held is None and k not in gone and k not in self.told.left]
            ahead = [k for k, s in self.told.stand(open_, self.items).items() if s.hope >= PLAUSIBLE][:1]
            if not judges or not ahead or self.told.decided(f"late for {ahead[0]}", self._late):
                return self._end(self._without(stand, ahead), judges=judges, needed=self._more())
            gone |= set(ahead)
            for start in range(0, len(judges), self.terms.batch):
                if self.told.decided(f"late for {ahead[0]} at {start}", self._late):
                    break
                self._tell(judges[start : start + self.terms.batch], ahead)
                if self.told.stand(ahead, self.items)[ahead[0]].seen.chance < HOPELESS:
                    break

    def _without(self, stand: Mapping[str, Standing], ahead: Sequence[str]) -> str:
        """Why there is no answer."""
        if not stand:
            return "failed"
        if all(s.cost >= 1 for s in stand.values()):
            return "costly"
        return "late" if ahead and all(s.held is None for s in stand.values()) else "short"

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
        """Minutes that the full model and one candidate take through as many items as are needed."""
        return self.told.seconds / self.told.answers * JUDGED * (FIRST + self.least) / 60

    def _reserve(self) -> float:
        """Seconds in which one candidate is judged."""
        return self.told.first / FIRST * JUDGED * self.least

    def _late_to_judge(self) -> bool:
        """Whether there would be no time for one candidate to be judged if another call came first."""
        return self.told.seconds + self.told.last + self._reserve() > 60 * self.terms.minutes

    def _more(self) -> float:
        """Minutes in which what was asked and one candidate that is judged have room; more than there were."""
        return max(1.5 * self.terms.minutes, (self.told.seconds + self.told.last + self._reserve()) / 60)

    def _late(self, share: float = 1.0) -> bool:
        """Whether another call like the last one would end behind that share of the time."""
        return self.told.seconds + self.told.last > share * 60 * self.terms.minutes

    # ---- what it comes to -----------------------------------------------------------------------------------------------

    def _standings(self, judges: Sequence[str]) -> dict[str, Standing]:
        """The cheapest first; of those that were asked as many of the judges as it takes, what they keep on them."""
        made = self.told.stand(self.asked, self.items)
        for key in made:
            known = [i for i in judges if self.told.knows(key, [i])]
            if len(known) >= self.least:
                made[key] = replace(made[key], held=self.told.kept(key, known))
        return dict(sorted(made.items(), key=lambda pair: pair[1].cost))

    def _end(self, why: str, chosen: str | None = None, needed: float = 0.0, judges: Sequence[str] = ()) -> Outcome:
        self.told.write()
        untried = [c for c in self.candidates if c not in self.asked]
        told = self.told
        stand = self._standings(judges)
        return Outcome(chosen, why, needed, stand, untried, dict(told.left), list(judges), told.seconds, told.answers)
