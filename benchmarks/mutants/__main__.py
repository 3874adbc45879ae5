"""`make mutants`: breaks every method and every part in small ways, and has each method that runs the line checked.

A mutant of a part counts once for every method whose checks run its line. It is killed where a check of
`tokensieve.testing.check_method` fails; the checks of memory are left out, since they cost most. Where a line runs and the
changed part of it never does (the second half of an `and`), the pair does not count. A second run goes on where the first
one stopped, as long as neither the methods nor their checks changed.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.mutants import helpers, operators, page, traced
from benchmarks.mutants.limited import Hangs, limited
from benchmarks.mutants.operators import INERT, Mutant
from benchmarks.mutants.patched import ROOT, patched, recompiled
from tokensieve.core import method_registry
from tokensieve.testing import method_checks

OUT = ROOT / "out" / "mutants"
FOLDERS = ("tokensieve/methods/", "tokensieve/parts/")
SECONDS = 20
"""After which a check counts as failed: a swapped comparison may never end."""

PINNED, IDLE, SAME = "pinned", "never evaluated", "never differed"
Checks = dict[str, Callable[[], None]]


def main() -> None:
    torch.set_num_threads(1)
    sources = {
        str(p.relative_to(ROOT)): p.read_text() for folder in FOLDERS for p in sorted((ROOT / folder).rglob("*.py"))
    }
    checks = {name: _checks(name) for name in method_registry.list_methods()}
    with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()) as bar:
        state = _started(sources)
        _trace(state, checks, bar)
        _run(state, sources, checks, bar)
        _control(state, sources, checks, bar)
    (ROOT / "docs" / "measured" / "mutants.md").write_text(page.text(state, pairs(state, _mutants(sources))))


def _checks(name: str) -> Checks:
    return {what: check for what, check in method_checks(name) if not what.startswith("memory")}


def _started(sources: dict[str, str]) -> dict[str, Any]:
    """What an earlier run found, if it looked at the same code."""
    code = [*sources.values(), *(p.read_text() for p in sorted((ROOT / "tokensieve/testing").glob("*.py")))]
    mark = hashlib.sha256("".join(code).encode()).hexdigest()
    file = OUT / "state.json"
    if file.is_file() and (state := json.loads(file.read_text()))["mark"] == mark:
        return state
    return {"mark": mark, "lines": {}, "pairs": {}, "control": {}}


def _save(state: dict[str, Any]) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    part = OUT / "state.json.part"
    part.write_text(json.dumps(state))
    part.replace(OUT / "state.json")


def _trace(state: dict[str, Any], checks: dict[str, Checks], bar: Progress) -> None:
    for name in bar.track(list(checks), description="lines"):
        if name in state["lines"]:
            continue
        with traced.lines(str(ROOT), FOLDERS) as seen:
            for check in checks[name].values():
                check()
        state["lines"][name] = sorted(f"{file}:{line}" for file, line in seen)
        _save(state)


def _mutants(sources: dict[str, str]) -> list[Mutant]:
    found = [m for file, source in sources.items() for m in operators.of(file, source)]
    for name in method_registry.list_methods():
        cls = method_registry.method_class(name)
        file = cls.__module__.replace(".", "/") + ".py"
        for f in fields(cls):
            rule = "declared inert, with the reason" if f.name in cls.inert else ""
            option = f"{cls.__qualname__}.{f.name}"
            found.append(Mutant(INERT, file, cls.__qualname__, 0, (0, 0), f"{name}: {f.name}", 0, rule, option))
    return found


def pairs(state: dict[str, Any], mutants: list[Mutant]) -> Iterator[tuple[Mutant, str]]:
    """Every mutant with every method that runs it."""
    run = {name: set(lines) for name, lines in state["lines"].items()}
    for mutant in mutants:
        if mutant.operator == INERT:
            yield mutant, mutant.before.split(":")[0]
            continue
        here = {f"{mutant.file}:{i}" for i in range(mutant.lines[0], mutant.lines[1] + 1)}
        for name, lines in run.items():
            if here & lines:
                yield mutant, name


def _run(state: dict[str, Any], sources: dict[str, str], checks: dict[str, Checks], bar: Progress) -> None:
    killers: Counter[tuple[str, str]] = Counter()
    saved = time.monotonic()
    for mutant, name in bar.track(list(pairs(state, _mutants(sources))), description="mutants"):
        key = f"{mutant.key}@{name}"
        if key in state["pairs"]:
            continue
        # What was pinned notices nearly anything: it comes last, so that it counts for what nothing else does.
        order = sorted(checks[name], key=lambda what: (what == PINNED, -killers[mutant.operator, what]))
        helpers.reset()
        with patched(mutant, sources[mutant.file]):
            killer = next((what for what in order if _fails(checks[name][what])), "")
        if not killer and mutant.operator != INERT:
            killer = "" if helpers.SEEN["differed"] else SAME if helpers.SEEN["ran"] else IDLE
        killers[mutant.operator, killer] += 1
        state["pairs"][key] = killer
        if time.monotonic() - saved > 20:
            _save(state)
            saved = time.monotonic()
    _save(state)


def _control(state: dict[str, Any], sources: dict[str, str], checks: dict[str, Checks], bar: Progress) -> None:
    """The same with nothing changed: every function compiled anew, and all checks of all methods."""
    for file, source in sources.items():
        recompiled(file, source)
    for name in bar.track(list(checks), description="unchanged"):
        state["control"][name] = [what for what, check in checks[name].items() if _fails(check)]
    _save(state)


def _fails(check: Callable[[], None]) -> bool:
    try:
        with limited(SECONDS):
            check()
    except (AssertionError, Hangs, RecursionError):
        return True
    return False


if __name__ == "__main__":
    sys.exit(main())
