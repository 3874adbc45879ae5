"""The real model's part of the cache leaderboard, from the lines that `benchmarks.real_cache` has written."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from textwrap import fill as wrapped
from typing import Any

from benchmarks.cache_plot import Panel, plot
from benchmarks.pages import fill, table
from benchmarks.real_cache import FILE, PLAN, Step, lines
from benchmarks.real_speed import FILE as SPEED
from benchmarks.real_speed import KEEP, TOKENS
from benchmarks.real_texts import TASKS
from tokensieve.bench import paired as stats

PAGE = Path(__file__).parent.parent / "docs" / "measured" / "cache-leaderboard.md"
PLOT = PAGE.parent.parent / "pictures" / "cache-smollm2.png"
LEAST = ("perplexity", "code", "summaries")
"""Tasks judged by nats a token, of which less is better; the others by answers that are right throughout."""


Cells = dict[tuple[int, float, str], dict[str, list[dict[str, float]]]]
"""By length, budget and task, the rows of each method, text by text; the full cache's and random's stand among them."""


def cells(measured: Sequence[dict[str, Any]]) -> Cells:
    """Only texts that every method of their step was measured on."""
    out: Cells = defaultdict(lambda: defaultdict(list))
    for line in measured:
        for name, row in line["rows"].items():
            method, _, keep = name.partition("@")
            for budget in {k.partition("@")[2] for k in line["rows"]} - {""} if method == "full" else {keep}:
                out[line["length"], float(budget), line["task"]][method].append(row)
    return out


def value(task: str, row: dict[str, float]) -> float:
    """What a task is judged by: nats, or a share in %."""
    return row["nats"] if task in LEAST else 100 * row["right"]


def cell(task: str, rows: dict[str, list[dict[str, float]]], method: str) -> str:
    """The mean, what it is more than the full cache's with its interval, and a mark where it is no better than random's."""
    if method not in rows:
        return ""
    digits = 2 if task in LEAST else 0
    own, full, chance = ([value(task, r) for r in rows[name]] for name in (method, "full", "random"))
    told = f"{mean(own):.{digits}f}"
    if method == "full" or len(own) < stats.FEWEST:
        return told
    less = stats.paired(own, full)
    between = f" ({less.low:+.{digits}f} to {less.high:+.{digits}f})"
    if method == "random":
        return told + between
    found = stats.paired(own, chance)
    worse = (found.mean > 0) == (task in LEAST)
    return told + between + (" °" if not found.distinguishable else " ‡" if worse else "")


def held(rows: Sequence[dict[str, list[dict[str, float]]]], method: str) -> float:
    """Bytes that a method holds, in % of the full cache's, over all tasks."""
    each = [100 * r["bytes"] / f["bytes"] for some in rows for r, f in zip(some[method], some["full"], strict=True)]
    return mean(each)


def section(found: Cells, step: Step, keep: float) -> list[str]:
    """Lines of Markdown of one length and budget, those first that hold most of what the full cache knows."""
    tasks = {task: found[step.length, keep, task] for task in TASKS if (step.length, keep, task) in found}
    title = f"### {step.length:,} tokens, keep = {keep:g}"
    if not tasks:
        return [title, "", f"Not reached: 0 of {step.texts} texts a task.", ""]
    counts = {task: len(rows["full"]) for task, rows in tasks.items()}
    names = [n for n in step.names if all(n in rows for rows in tasks.values())]
    body = [["**full**", "100%", *(cell(task, rows, "full") for task, rows in tasks.items())]]
    for name in sorted(names, key=lambda n: _rank(tasks, n)):
        shown = f"**{name}**" if name == "random" else name
        body.append([shown, f"{held([*tasks.values()], name):.1f}%", *(cell(t, r, name) for t, r in tasks.items())])
    head = ["method", "held", *(f"{t} {'↓' if t in LEAST else '↑'}" for t in tasks)]
    said = ", ".join(f"{t} {n}" for t, n in counts.items())
    least, most = min(counts.values()), max(counts.values())
    few = (
        ""
        if least >= stats.FEWEST
        else f" Too few for intervals ({stats.FEWEST} are needed), and to rank methods that lie near each other."
    )
    told = f"{least if least == most else said} of {step.texts} texts {'a task' if least == most else 'planned'}.{few}"
    return [title, "", told, "", table(head, body), ""]


def _rank(tasks: dict[str, dict[str, list[dict[str, float]]]], name: str) -> float:
    """Less is better: the mean, over tasks, of the place among all methods."""
    places = []
    for task, rows in tasks.items():
        scores = {n: mean(value(task, r) for r in some) * (1 if task in LEAST else -1) for n, some in rows.items()}
        places.append(sum(s < scores[name] for s in scores.values()))
    return mean(places)


def page(measured: Sequence[dict[str, Any]], head: dict[str, Any]) -> str:
    """The part as Markdown."""
    found = cells(measured)
    what = (
        "What SmolLM2-135M-Instruct ([a real model](../how-to/real-models.md), float32) still knows of a prompt once its cache "
        "is compressed at its end. One prefill of each text is recorded, and each method compresses a copy of the full cache, "
        "which is what its own run would hold. `held` is all that the cache keeps, whatever for, in % of the full cache's."
    )
    how = (
        "↓ are nats a token (the logarithm of the perplexity), of which less is better; ↑ are answers right in %. In brackets is "
        "the 95% bootstrap interval of the difference from the full cache, text by text; ° marks what cannot be told from random "
        "at the same budget by such an interval, ‡ what is worse than random. (`zipcache` holds far fewer bytes than random "
        f"at its budget.) Methods stand by their mean place over the tasks. {head['cpu']}, "
        f"threads: {head['threads']}, torch {head['versions']['torch']}, transformers {head['versions']['transformers']}, seed 0."
    )
    counts = [
        (len(found.get((step.length, keep, task), {}).get("full", ())), step.texts)
        for step in PLAN
        for keep in step.budgets
        for task in TASKS
    ]
    goes_on = "The plan has more texts than were measured; `python -m benchmarks.real_cache` goes on where it stopped. "
    rest = (
        f"{goes_on if any(count < planned for count, planned in counts) else ''}What reads less and drops nothing "
        "(`tidaldecode`) is measured on the packaged model below."
    )
    out = [wrapped(what, 128), "", wrapped(how, 128), ""]
    out += [*(f"- **{task}**: {about}" for task, about in TASKS.items()), "", wrapped(rest, 128), ""]
    out += ["![What SmolLM2 still knows against the bytes held](../pictures/cache-smollm2.png)", ""]
    out += ["Points are of the texts that were measured at every budget.", ""]
    for step in PLAN:
        for keep in step.budgets:
            out += section(found, step, keep)
    return "\n".join(out).rstrip()


def costs(data: dict[str, Any]) -> str:
    """What compression takes and decoding gains, as Markdown."""
    told = (
        f"One prompt of {TOKENS:,} tokens, keep={KEEP:g}, ratios of one run, in time of the processor in one thread. "
        "Compression is in % of the prefill. `times full` is how many times faster than over the full cache a token is decoded; "
        "`bare` is what "
        "a plain cache of as many entries reaches with no sieve, and the last column the part of that which is reached. "
        "`zipcache` drops nothing, so that nothing bare stands beside it."
    )
    rows = []
    for dtype, some in data["rows"].items():
        for name, row in some.items():
            if name != "full":
                more = [f"{row['bare']:.2f}", f"{row['gain']:.2f}"] if row["gain"] else ["", ""]
                rows.append([f"{name}, {dtype}", f"{row['compression']:.1%}", f"{row['times full']:.2f}", *more])
    head = ("method", "compression", "times full", "bare", "part")
    return "\n".join(["### What it costs on SmolLM2", "", wrapped(told, 128), "", table(head, rows)])


def shared(measured: Sequence[dict[str, Any]], length: int) -> list[dict[str, Any]]:
    """Lines of that length of the texts that stand at every budget at which all tasks were begun."""
    here = [(line, {k.partition("@")[2] for k in line["rows"]} - {""}) for line in measured if line["length"] == length]
    begun: dict[str, set[str]] = defaultdict(set)
    texts: dict[tuple[str, int], set[str]] = defaultdict(set)
    for line, budgets in here:
        texts[line["task"], line["number"]] |= budgets
        for budget in budgets:
            begun[budget].add(line["task"])
    whole = {budget for budget, tasks in begun.items() if len(tasks) == len(TASKS)}
    return [line for line, _ in here if whole <= texts[line["task"], line["number"]]]


def draw(measured: Sequence[dict[str, Any]], length: int = 2048) -> None:
    """Each task against the bytes held, by method and budget, on the same texts at all budgets."""
    found = cells(shared(measured, length))
    full: dict[str, float] = {"bytes": 100.0}
    rows: dict[str, dict[float, dict[str, float]]] = defaultdict(dict)
    budgets = sorted({keep for n, keep, _ in found if n == length})
    for keep in budgets:
        tasks = {task: found[length, keep, task] for task in TASKS if (length, keep, task) in found}
        if len(tasks) < len(TASKS):
            continue
        for name in PLAN[0].names:
            row = {"bytes": held([*tasks.values()], name)}
            for task, some in tasks.items():
                full[task] = mean(value(task, r) for r in some["full"])
                row[task] = mean(value(task, r) for r in some[name])
            rows[name][keep] = row
    panels = {t: Panel(f"{t}, {'nats a token' if t in LEAST else '% right'}", 1) for t in TASKS}
    plot(full, rows, PLOT, panels, across=3)


def main(file: Path = FILE) -> None:
    head, *measured = lines(file)
    parts = [page(measured, head)] + ([costs(json.loads(SPEED.read_text(encoding="utf-8")))] if SPEED.exists() else [])
    fill(PAGE, "smollm2", "\n\n".join(parts))
    draw(measured)


if __name__ == "__main__":
    main()
