"""Run a bench: the full model, the baselines, and the methods asked for, at every budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tokensieve.bench.data import Sample
from tokensieve.bench.measure import Reference, measure
from tokensieve.bench.results import Results, Settings
from tokensieve.bench.subject import Subject, prepare
from tokensieve.core.plan import applied
from tokensieve.parts.budget import Budget

BASELINES = ("random", "uniform", "pool")
Progress = Callable[[int, int, str], None]


def cells(methods: Sequence[str], budgets: Sequence[Budget]) -> list[tuple[str, Budget]]:
    """(method, budget) pairs, baselines first; every name and budget is checked here.

    Raises:
        ValueError: an unknown method or a budget outside its range.
    """
    names = list(dict.fromkeys([*BASELINES, *methods]))
    pairs = [(name, keep) for keep in budgets for name in names]
    for name, keep in pairs:
        applied(name, keep)
    return pairs


def run(
    subject: Subject,
    samples: Sequence[Sample],
    pairs: Sequence[tuple[str, Budget]],
    out: Path,
    settings: Settings,
    skipped: Sequence[str] = (),
    progress: Progress = lambda done, total, what: None,
) -> Results:
    """Measure every cell that ``out/results.json`` does not hold yet; the file is complete after each.

    The full model is always run, since the others are compared with it.

    Raises:
        ValueError: ``out`` holds a run with other settings or samples. KeyboardInterrupt passes through; finished cells are on
            disk.
    """
    results = Results.open(out, settings, list(skipped), [s.to_json() for s in samples])
    total = len(pairs) + 1
    progress(0, total, "the full model")
    batches = prepare(subject, list(samples), settings.batch)
    row, full = measure(subject, batches, None, None, settings.new_tokens, settings.seed)
    results.add("full", {"method": "full", "site": "", "keep": None, **row})
    for done, (name, keep) in enumerate(pairs, 1):
        key = f"{name}@{keep}"
        progress(done, total, key)
        if key not in results.rows:
            results.add(key, _cell(subject, batches, name, keep, full, settings))
    progress(total, total, "done")
    return results


def _cell(
    subject: Subject, batches: list[Any], name: str, keep: Budget, full: Reference, settings: Settings
) -> dict[str, Any]:
    whole = applied(name, keep)
    row, _ = measure(subject, batches, whole, full, settings.new_tokens, settings.seed)
    sites = dict.fromkeys(stage.site for stage in whole.stages)
    return {"method": name, "site": "+".join(sites), "keep": keep, **row}
