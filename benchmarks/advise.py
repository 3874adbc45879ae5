"""What `advise` finds beside what a full sweep finds: `python -m benchmarks.advise [FOLDER]`.

24 plans and 200 questions of the packaged LLaVA are swept in full once; then `advise` looks for a plan among them, at three
goals and with three seeds, in at most a quarter of the sweep's time. Its choices are judged by the sweep's own table. Goals,
plans and questions were fixed before anything was measured. Resumed; writes docs/measured/advise.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median, stdev
from textwrap import fill as wrapped
from time import perf_counter
from typing import Any

from benchmarks.pages import table
from tokensieve.bench.answers import Answers
from tokensieve.bench.data import from_testbed
from tokensieve.bench.demo import questions
from tokensieve.bench.equal import FULL
from tokensieve.bench.own import shape_of
from tokensieve.bench.questions import read_questions
from tokensieve.bench.results import environment
from tokensieve.bench.subject import Subject
from tokensieve.core.files import write_json
from tokensieve.planner import asking
from tokensieve.planner.advise import advise
from tokensieve.planner.candidates import candidates_of
from tokensieve.planner.halving import Outcome, Terms, search
from tokensieve.planner.runtimes import transformers
from tokensieve.planner.told import Replies

PAGE = Path(__file__).parent.parent / "docs" / "measured" / "advise.md"
COUNT, SEED, BATCH, NEW = 200, 23, 20, 4
METHODS, BUDGETS, SITES = ("tome", "fastervlm"), (256, 160, 96), ("encoder", "handoff")
"""With random, uniform and pool at both sites 8 methods at 3 budgets."""
GOALS, SEEDS, PARTS = (0.9, 0.95, 0.99), (0, 1, 2), (0.25, 0.5)
NEAR = 1.05
SQRT2 = 2**0.5
"""How much wider half of the questions make an interval."""


class Sweep:
    """All plans asked all questions.

    Attributes:
        replies: by the first question of each batch, what all plans said to it; seconds: that it took.
    """

    def __init__(self, folder: Path):
        self.file = folder / "sweep.json"
        if not (folder / "q.jsonl").exists():
            questions(from_testbed(COUNT, SEED), folder)
        self.items = read_questions(folder / "q.jsonl").items
        subject = Subject.load("testbed")
        work = Answers(subject, "exact", NEW, 0)
        pool = candidates_of(
            subject.model, subject.processor.tokenizer, SITES, METHODS, BUDGETS, shape_of(work, self.items),
            transformers(subject.model),
        )  # fmt: skip
        self.cells = pool.cells
        self.ask = asking.Asking(
            work, self.cells, self.items, asking.of_questions, asking.flops, folder / "answers.json"
        )
        self.seconds: dict[str, float] = json.loads(self.file.read_text()) if self.file.exists() else {}

    def run(self) -> None:
        names = [i.name for i in self.items]
        for start in range(0, COUNT, BATCH):
            if names[start] not in self.seconds:
                began = perf_counter()
                self.ask(names[start : start + BATCH], list(self.cells))
                self.seconds[names[start]] = perf_counter() - began
                write_json(self.file, self.seconds)
                print(f"sweep: {start + BATCH} of {COUNT} questions, {sum(self.seconds.values()):.0f} s", flush=True)

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    def score(self, key: str) -> list[float]:
        return [self.ask.records[key][i.name]["score"] for i in self.items]

    def cost(self, key: str, target: str) -> float:
        """The median over batches, as a share of the full model's."""
        passes, of = self.ask.passes, asking.COSTS[target]
        return median(of(ours) / of(passes[FULL][first]) for first, ours in passes[key].items())

    def quality(self, key: str) -> tuple[float, float]:
        """The share of the full model's score, and its standard error."""
        ours, full = self.score(key), self.score(FULL)
        share = sum(ours) / sum(full)
        error = stdev([a - share * b for a, b in zip(ours, full, strict=True)]) / len(full) ** 0.5
        return share, error / (sum(full) / len(full))

    def spent(self, items: Sequence[str], keys: Sequence[str]) -> float:
        """Seconds that these items took under the full model and some plans: their part of the batches that they were in."""
        names = [i.name for i in self.items]
        firsts = [names[names.index(i) // BATCH * BATCH] for i in items]
        return sum(self._beside(first) + sum(self._alone(k, first) for k in (FULL, *keys)) for first in firsts) / BATCH

    def _alone(self, key: str, first: str) -> float:
        """Seconds of a batch under a plan; the encoder counts where it ran for this plan alone."""
        ms = self.ask.passes[key][first]["ms"]
        shared = key != FULL and all(s.site != "encoder" for s in self.cells[key].plan.stages)  # type: ignore[union-attr]
        return (ms["total"] - (ms["encoder"] if shared else 0.0)) / 1000

    def _beside(self, first: str) -> float:
        """Seconds of a batch that are not the model's: pictures are read, answers judged."""
        return self.seconds[first] - sum(self._alone(k, first) for k in (FULL, *self.cells))

    def replayed(self, items: Sequence[str], keys: Sequence[str], target: str) -> dict[str, Replies | str]:
        """What the sweep was told, as an answer to a search."""
        known = self.ask.records
        return {
            key: Replies([known[key][i]["score"] for i in items], 1.0 if key == FULL else self.cost(key, target))
            for key in (FULL, *keys)
        }


def judged(sweep: Sweep, outcome: Outcome, goal: float, target: str) -> dict[str, Any]:
    """A choice by the sweep's table."""
    meets = [k for k in sweep.cells if sweep.quality(k)[0] >= goal and sweep.cost(k, target) < 1]
    least = min((sweep.cost(k, target) for k in meets), default=None)
    row: dict[str, Any] = {
        "goal": goal, "meets": len(meets), "chosen": outcome.chosen, "why": outcome.why, "answers": outcome.answers,
        "seconds": outcome.seconds,
    }  # fmt: skip
    if outcome.chosen is None:
        return row | {"right": not meets and outcome.why == "short"}
    share, error = sweep.quality(outcome.chosen)
    cost = sweep.cost(outcome.chosen, target)
    row |= {"share": share, "error": error, "ratio": None if least is None else cost / least}
    return row | {"right": share >= goal - error and least is not None and cost <= NEAR * least}


def searches(sweep: Sweep, folder: Path, write: Callable[[list[dict[str, Any]]], None]) -> None:
    """`advise` itself at each goal with each seed, in a quarter of the sweep's time; ``write`` is given what is done so far."""
    file = folder / "searches.json"
    done = json.loads(file.read_text()) if file.exists() else {}
    write(list(done.values()))
    for seed in SEEDS:
        for goal in GOALS:
            key = f"{goal}#{seed}"
            if key not in done:
                made = advise(
                    "testbed", questions=folder / "q.jsonl", out=folder / f"advice-{key}", quality=goal, target="flops",
                    minutes=PARTS[0] * sweep.total / 60, methods=METHODS, keep=BUDGETS, sites=SITES, new_tokens=NEW,
                    batch=BATCH, seed=seed, dtype="float32", device="cpu",
                )  # fmt: skip
                row = judged(sweep, made.outcome, goal, "flops")
                done[key] = row | {"seed": seed, "sentence": made.sentence, "time": made.outcome.seconds / sweep.total}
                write_json(file, done)
                print(key, made.sentence, flush=True)
                write(list(done.values()))


def replays(sweep: Sweep, folder: Path, target: str, seeds: Sequence[int], part: float) -> list[dict[str, Any]]:
    """Searches on what the sweep was told, by a clock of the times that it took for it, in a part of its time."""
    out = []
    names = [i.name for i in sweep.items]
    whole = sum(sweep.spent([n], list(sweep.cells)) for n in names)
    for seed in seeds:
        for goal in GOALS:
            file, now = folder / "replay.json", [0.0]
            file.unlink(missing_ok=True)

            def ask(items: Sequence[str], keys: Sequence[str], now: list[float] = now) -> dict[str, Replies | str]:
                now[0] += sweep.spent(items, keys)
                return sweep.replayed(items, keys, target)

            terms = Terms(goal, part * whole / 60, BATCH, seed)
            found = search(list(sweep.cells), names, ask, terms, file, clock=lambda now=now: now[0])  # type: ignore[misc]
            out.append({**judged(sweep, found, goal, target), "seed": seed, "time": found.seconds / whole})
            file.unlink()
    return out


Found = Mapping[str, Sequence[Mapping[str, Any]]]


def page(sweep: Sweep, again: Mapping[float, Found], made: Sequence[Mapping[str, Any]]) -> str:
    """The page as Markdown."""
    env = environment()
    names = [i.name for i in sweep.items]
    alone = sum(sweep.spent([n], []) for n in names) / sum(sweep.spent([n], list(sweep.cells)) for n in names)
    shares, errors = zip(*(sweep.quality(k) for k in sweep.cells), strict=True)
    typical = median(errors)
    close = sum(min(abs(share - goal) for goal in GOALS) <= SQRT2 * typical for share in shares)
    intro = (
        f"`tokensieve advise` beside a full sweep of the packaged LLaVA: {len(sweep.cells)} plans ({', '.join(METHODS)}, and "
        f"random, uniform and pool at {' and '.join(SITES)}; {', '.join(map(str, BUDGETS))} visual tokens) and {COUNT} held-out "
        f"questions, swept in full once ({sweep.total:.0f} s), one encoding for all plans that leave the encoder as it is. Then "
        "a plan is looked for at three goals, in a part of the sweep's time. Goals, plans and questions were fixed before "
        "anything was measured. A choice is right where the sweep's own table says that it keeps the goal less one standard "
        "error at least, and that its cost is at most 1.05 of that of the cheapest plan that keeps the goal; or where no plan "
        "keeps it, and it says so."
    )
    limits = (
        f"The full model alone takes {100 * alone:.0f}% of the sweep's time for all questions, since most plans take much less "
        "than it does: in a quarter of that time about half of them can be asked of it and of one or two plans, after a search "
        f"among all. The standard error of a share is then {100 * SQRT2 * typical:.1f} points where the sweep's is "
        f"{100 * typical:.1f}, and {close} of the {len(sweep.cells)} plans lie no further than that from one of the goals: of "
        "these a part of the questions often says another thing than all do. The rule by which candidates are passed over was "
        "fixed before these questions were drawn: it was "
        "changed once, after a sweep with other questions, of which 10 of 27 were right in a quarter of the time and 22 in half."
    )
    where = (
        f"{env['cpu']}, {env['threads']} threads, on a machine that others used too; torch {env['versions']['torch']}, "
        f"transformers {env['versions']['transformers']}. Made by `python -m benchmarks.advise`."
    )
    replayed = (
        f"Searches on what the sweep was told, with {len(SEEDS)} seeds, by a clock of the times that the sweep took for the same "
        "questions and plans. `memory` is bytes of the cache, `latency` the median over pairs of batches."
    )
    parts = ["# Advice beside a sweep", "", *(f"{wrapped(t, 128)}\n" for t in (intro, limits, where, replayed))]
    for part, found in again.items():
        rows = [(target, r) for target, some in found.items() for r in some]
        right = sum(r["right"] for _, r in rows)
        goals = [[r for _, r in rows if r["goal"] == goal] for goal in GOALS]
        each = ", ".join(f"{sum(r['right'] for r in g)} of {len(g)} at {100 * g[0]['goal']:g}%" for g in goals)
        parts += [f"## In {100 * part:.0f}% of the sweep's time", "", f"{right} of {len(rows)} right: {each}.", ""]
        parts += [table(HEAD, [_row(target, r) for target, r in rows]), ""]
    if made:
        parts += [
            "",
            wrapped(f"`tokensieve advise --for flops` itself, {len(made)} times, by the clock on the wall.", 128),
            "",
        ]
        parts.append(table(HEAD, [_row("flops", r) for r in made]))
        parts += ["", *(f"> {r['sentence']}\n" for r in made[:3])]
    plans = []
    for key in sorted(sweep.cells, key=lambda k: sweep.cost(k, "flops")):
        share, error = sweep.quality(key)
        costs = [f"{100 * sweep.cost(key, t):.0f}%" for t in ("flops", "memory", "latency")]
        plans.append([key, f"{100 * share:.1f} ± {100 * error:.1f}", *costs])
    parts += ["", "## The sweep", "", table(["plan", "keeps, % of full", "FLOPs", "cache", "time"], plans), ""]
    return "\n".join(parts)


HEAD = (
    "for", "goal", "seed", "plans that keep it", "chosen", "keeps, by the sweep", "of the least cost", "answers", "of the time",
    "right",
)  # fmt: skip


def _row(target: str, r: Mapping[str, Any]) -> list[str]:
    chosen = r["chosen"] is not None
    return [
        target, f"{100 * r['goal']:g}%", str(r["seed"]), str(r["meets"]), r["chosen"] if chosen else f"none ({r['why']})",
        f"{100 * r['share']:.1f} ± {100 * r['error']:.1f}" if chosen else "–", f"{r['ratio']:.2f}" if r.get("ratio") else "–",
        str(r["answers"]), f"{r['time']:.2f}", "yes" if r["right"] else "no",
    ]  # fmt: skip


def main(folder: Path = Path("out/advise")) -> None:
    sweep = Sweep(folder)
    sweep.run()
    again = {p: {t: replays(sweep, folder, t, SEEDS, p) for t in ("flops", "memory", "latency")} for p in PARTS}

    def write(made: Sequence[Mapping[str, Any]]) -> None:
        PAGE.write_text(page(sweep, again, made), encoding="utf-8")

    searches(sweep, folder, write)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
