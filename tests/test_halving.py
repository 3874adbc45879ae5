"""The search for the cheapest candidate that keeps a goal, on made-up scores."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest

from tokensieve.planner import halving, told
from tokensieve.planner.halving import FULL, Replies, Terms, search
from tokensieve.planner.kept import fewest, kept, sure
from tokensieve.planner.told import hopes

TERMS = Terms(goal=0.95, minutes=1e6)


class Asked:
    """Candidates whose scores are known: by name the cost, and the share of the items that is lost."""

    def __init__(self, lost, count=200, seed=0, full=0.95, seconds=0.0):
        rng = np.random.default_rng(seed)
        hard = rng.permutation(count) / count  # who loses more loses the same ones and others
        self.costs = {key: cost for key, (cost, _) in lost.items()}
        self.scores = {FULL: (rng.random(count) < full).astype(float)}
        self.scores |= {key: self.scores[FULL] * (hard >= share) for key, (_, share) in lost.items()}
        self.items = [str(i) for i in range(count)]
        self.calls, self.fails, self.seconds, self.clock = [], {}, seconds, 0.0

    def __call__(self, items, candidates):
        self.calls.append((list(items), list(candidates)))
        self.clock += self.seconds * len(items) * (1 + len(candidates))
        rows = [int(i) for i in items]
        made = {FULL: Replies(self.scores[FULL][rows], 1.0)}
        return made | {
            key: self.fails.get(key) or Replies(self.scores[key][rows], self.costs[key]) for key in candidates
        }

    @property
    def answers(self):
        return sum(len(items) * (1 + len(candidates)) for items, candidates in self.calls)

    def share(self, key):
        return self.scores[key].sum() / self.scores[FULL].sum()


def grid(steps=(0.0, 0.02, 0.15, 0.5)):
    """24 candidates: six kinds at four costs, the cheaper the more they lose, the later kinds the more."""
    return {
        f"{kind}@{n}": (0.8 - 0.2 * n + 0.01 * i, min(0.9, steps[n] * (1 + i)))
        for i, kind in enumerate("abcdef")
        for n in range(4)
    }


def found(tmp_path, asked, terms=TERMS, name="search.json"):
    """What is found by a clock that says how long the asked would take."""
    return search(list(asked.costs), asked.items, asked, terms, tmp_path / name, clock=lambda: asked.clock)


@pytest.mark.parametrize("seed", range(3))
def test_the_cheapest_that_keeps_the_goal_is_found_with_a_quarter_of_the_answers(tmp_path, seed):
    asked = Asked(grid(), seed=seed)
    out = found(tmp_path, asked, replace(TERMS, seed=seed))
    good = [k for k in asked.costs if asked.share(k) >= 0.95]
    cheapest = min(asked.costs[k] for k in good)
    assert out.why == ""
    assert out.chosen in good
    assert asked.costs[out.chosen] <= 1.05 * cheapest
    assert asked.answers <= 0.25 * 200 * 25
    assert out.answers == asked.answers
    assert list(out.standings) == sorted(out.standings, key=lambda k: out.standings[k].cost)
    held = out.standings[out.chosen].held
    assert held.count == len(out.judges) >= 100
    wide = {i for items, some in asked.calls for i in items if len(some) > halving.FINALISTS}
    assert wide.isdisjoint(out.judges)
    rows = [int(i) for i in out.judges]
    assert held.share == asked.scores[out.chosen][rows].sum() / asked.scores[FULL][rows].sum()
    assert held.low < held.share < held.high


def test_where_nothing_reaches_the_goal_it_says_so_early(tmp_path):
    asked = Asked(grid((0.3, 0.4, 0.5, 0.6)))
    out = found(tmp_path, asked)
    assert (out.chosen, out.why) == (None, "short")
    assert asked.answers <= 0.25 * 200 * 25


def test_what_costs_as_much_as_the_full_model_is_no_answer(tmp_path):
    out = found(tmp_path, Asked({"a": (1.0, 0.0), "b": (1.3, 0.0)}))
    assert (out.chosen, out.why) == (None, "costly")
    out = found(tmp_path, Asked({"a": (1.0, 0.0), "b": (0.9, 0.0)}), name="other.json")
    assert out.chosen == "b"


def test_of_equal_costs_the_one_that_keeps_most(tmp_path):
    out = found(tmp_path, Asked({"a": (0.5, 0.04), "b": (0.505, 0.0)}))
    assert out.chosen == "b"


def test_one_that_was_passed_over_is_asked_after_all(tmp_path):
    """The cheap ones keep the goal on what the search sees, and lose it on the rest."""
    asked = Asked({"costly": (0.8, 0.0), "cheap": (0.3, 0.0), "cheaper": (0.2, 0.0)})
    out = found(tmp_path, asked)
    assert out.chosen == "cheaper"
    late = [int(i) for i in out.judges]
    asked.calls.clear()
    for key in ("cheap", "cheaper"):
        asked.scores[key][late[::3]] = 0
    out = found(tmp_path, asked, name="again.json")
    assert out.chosen == "costly"
    assert out.standings["costly"].held.count == len(out.judges) >= 100


@pytest.mark.parametrize(("goal", "items", "needed"), [(0.98, 12, 58), (0.98, 57, 58), (0.9, 12, 28)])
def test_too_few_items_say_how_many_are_needed(tmp_path, goal, items, needed):
    asked = Asked(grid(), count=items)
    out = found(tmp_path, asked, replace(TERMS, goal=goal))
    assert (out.chosen, out.why, out.needed) == (None, "few", needed)
    assert asked.calls == []
    enough = Asked(grid(), count=needed)
    assert found(tmp_path, enough, replace(TERMS, goal=goal), "enough.json").why != "few"


def test_a_full_model_that_is_always_wrong_has_nothing_to_keep(tmp_path):
    asked = Asked(grid(), full=0.0)
    out = found(tmp_path, asked)
    assert (out.chosen, out.why) == (None, "wrong")
    assert asked.answers == 200 + halving.FIRST
    rarely = Asked({"a": (0.5, 0.0)}, full=0.0)
    rarely.scores[FULL][17] = rarely.scores["a"][17] = 1.0
    assert found(tmp_path, rarely, name="rarely.json").why != "wrong"


def test_time_limits_what_is_asked(tmp_path):
    asked = Asked(grid(), seconds=1.0)
    out = found(tmp_path, asked, replace(TERMS, minutes=10))
    assert out.why == ""
    assert out.seconds == asked.clock <= 10 * 60
    assert max(s.seen.count for s in out.standings.values()) < 200


def test_too_little_time_says_the_least(tmp_path):
    asked = Asked(grid(), seconds=1.0)
    out = found(tmp_path, asked, replace(TERMS, minutes=0.1))
    assert (out.chosen, out.why) == (None, "late")
    assert out.needed == pytest.approx(halving.JUDGED * (halving.FIRST + 20) / 60)
    assert asked.answers == halving.FIRST
    assert out.untried == list(asked.costs)


def test_time_that_ends_before_a_plan_is_judged_says_more_than_there_was(tmp_path):
    asked = Asked(grid((0.0, 0.0, 0.0, 0.0)), seconds=1.0)
    minutes = 1.6 * (halving.FIRST + 20) / 60
    out = found(tmp_path, asked, replace(TERMS, minutes=minutes))
    assert (out.chosen, out.why) == (None, "late")
    assert out.untried == []
    assert out.needed > asked.clock / 60 > minutes
    enough = Asked(grid((0.0, 0.0, 0.0, 0.0)), seconds=1.0)
    assert found(tmp_path, enough, replace(TERMS, minutes=out.needed), "more.json").chosen is not None


def test_candidates_that_there_is_no_time_for_are_named(tmp_path):
    asked = Asked({f"c{i}": (0.5, 0.0) for i in range(60)}, seconds=1.0)
    out = found(tmp_path, asked, replace(TERMS, minutes=10))
    assert out.untried == [f"c{i}" for i in range(24, 60)]
    assert out.chosen is not None


def test_a_candidate_that_cannot_be_asked_is_left_out(tmp_path):
    asked = Asked(grid())
    asked.fails = {"a@2": "it takes no such item"}
    out = found(tmp_path, asked)
    assert out.left == asked.fails
    assert sum("a@2" in some for _, some in asked.calls) == 1
    assert out.chosen not in (None, "a@2")
    asked.fails = dict.fromkeys(asked.costs, "no")
    assert found(tmp_path, asked, name="none.json").why == "failed"


def test_an_interrupted_search_goes_on_and_asks_nothing_twice(tmp_path):
    at_once = Asked(grid())
    whole = found(tmp_path, at_once)
    for stop in (1, 3, len(at_once.calls) - 1):
        asked = Asked(grid())

        def ask(items, candidates, asked=asked, stop=stop):
            if len(asked.calls) == stop:
                raise KeyboardInterrupt
            return asked(items, candidates)

        with pytest.raises(KeyboardInterrupt):
            search(list(asked.costs), asked.items, ask, TERMS, tmp_path / f"{stop}.json", clock=lambda: 0.0)
        again = found(tmp_path, asked, name=f"{stop}.json")
        assert asked.calls == at_once.calls
        assert replace(again, seconds=0) == replace(whole, seconds=0)


def test_other_terms_are_refused_by_name(tmp_path):
    asked = Asked(grid())
    found(tmp_path, asked, replace(TERMS, about={"model": "mine"}))
    with pytest.raises(ValueError, match=r"other terms \(goal: 0.95 there, 0.9 asked for\)"):
        found(tmp_path, asked, replace(TERMS, goal=0.9, about={"model": "mine"}))
    with pytest.raises(ValueError, match=r"other terms \(model: 'mine' there, 'yours' asked for\)"):
        found(tmp_path, asked, replace(TERMS, about={"model": "yours"}))
    with pytest.raises(ValueError, match=r"other terms \(candidates\)"):
        search(
            list(asked.costs)[:3], asked.items, asked, replace(TERMS, about={"model": "mine"}), tmp_path / "search.json"
        )
    (tmp_path / "search.json").write_text("{")
    with pytest.raises(ValueError, match="is no search"):
        found(tmp_path, asked)
    (tmp_path / "search.json").write_text("[]")
    with pytest.raises(ValueError, match="is no search of this version"):
        found(tmp_path, asked)


def test_a_full_disk_leaves_what_was_told(tmp_path, monkeypatch):
    asked = Asked(grid())
    plain, calls = told.write_json, itertools.count()

    def full(path, value):
        if next(calls) == 3:
            raise OSError("could not write: no space left on device")
        plain(path, value)

    monkeypatch.setattr(told, "write_json", full)
    with pytest.raises(OSError, match="no space left"):
        found(tmp_path, asked)
    assert json.loads((tmp_path / "search.json").read_text())["answers"] > 0
    out = found(tmp_path, asked)
    assert replace(out, seconds=0, answers=0) == replace(
        found(tmp_path, Asked(grid()), name="b.json"), seconds=0, answers=0
    )


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"goal": 0}, "quality=0: .*lies in"),
        ({"goal": 98}, "quality=98: .*lies in"),
        ({"minutes": 0}, "minutes=0: it must be above 0"),
    ],
)
def test_bad_terms(changes, match):
    with pytest.raises(ValueError, match=match):
        replace(TERMS, **changes)


def test_bad_names_and_scores(tmp_path):
    asked = Asked({"a": (0.5, 0.0)})
    for candidates, match in (([], "is empty"), (["a", "a"], "a name of its own"), ([FULL], "none may be 'full'")):
        with pytest.raises(ValueError, match=match):
            search(candidates, asked.items, asked, TERMS, tmp_path / "s.json")
    asked.scores["a"][:] = np.nan
    with pytest.raises(ValueError, match="a: scores and costs must be finite"):
        found(tmp_path, asked)


# ---- chances ------------------------------------------------------------------------------------------------------------


def test_hope_is_the_chance_to_keep_the_goal_times_the_doubt_that_a_cheaper_one_does():
    stand = {"dear": (0.9, 0.8), "cheap": (0.2, 0.75), "middle": (0.5, 0.25), "none": (1.0, 1.0)}
    # "cheap" is more likely than not, by a half; "middle" says nothing of those behind it.
    assert hopes(stand) == pytest.approx({"cheap": 0.75, "middle": 0.5 * 0.25, "dear": 0.5 * 0.8, "none": 0.0})
    near = hopes({"a": (0.500, 0.3), "b": (0.505, 0.9)})
    assert near == pytest.approx({"b": 0.9, "a": 0.2 * 0.3})


def test_what_is_kept():
    full, ours = [1.0] * 100, [1.0] * 98 + [0.0] * 2
    at_goal = kept(ours, full, 0.98, 1.0)
    assert (at_goal.share, at_goal.count) == (0.98, 100)
    assert 0.3 < at_goal.chance < 0.7
    assert kept(ours, full, 0.9, 1.0).chance > 0.99 > 0.01 > kept(ours, full, 0.999, 1.0).chance - 0.15
    whole = kept(full, full, 0.98, 1.0)
    assert whole.share == 1
    assert 0.96 < whole.low < 1  # nothing broke so far; that is not to say that nothing will
    assert kept([1.0] * 12, [1.0] * 12, 0.98, 1.0).low < whole.low
    graded = kept([0.9, 1.9, 0.0], [1.0, 2.0, 0.0], 0.9, 0.1)
    assert graded.share == pytest.approx(2.8 / 3)
    with pytest.raises(ValueError, match="nothing to keep"):
        kept([0.0], [0.0], 0.9, 1.0)
    with pytest.raises(ValueError, match="both of every item"):
        kept([0.0], [], 0.9, 1.0)


def test_how_many_items_tell():
    assert [fewest(g) for g in (0.5, 0.9, 0.98, 0.99, 1.0)] == [20, 20, 50, 100, 200]
    assert [sure(g) for g in (0.9, 0.98)] == [29, 149]
