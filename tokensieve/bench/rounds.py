"""Rounds: people's own data, batch by batch, each under every plan in turn; resumed, and halved where memory runs out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from time import perf_counter
from typing import Any, Protocol

import torch

from tokensieve.bench.equal import WHOLE, Cell, random_beside
from tokensieve.bench.results import Results
from tokensieve.core.plan import Plan

Record = dict[str, Any]
"""What was found of one item under one plan."""
Pass = dict[str, Any]
"""What a batch cost under one plan."""
Measure = Callable[[Cell], tuple[list[Record], Pass]]
Made = tuple[Cell, list[Record], Pass]
Progress = Callable[[int, int, str], None]
SPARE = 0.02
"""The share of the time that writing results may take."""


class Askable(Protocol):
    """Something that is asked."""

    @property
    def name(self) -> str: ...


class Measuring(Protocol):
    """How items are asked."""

    def batches(self, items: Sequence[Any], size: int) -> Sequence[Sequence[Any]]:
        """Items that go together, at most ``size``."""
        ...

    def warm_up(self) -> None:
        """Have the model run, unmeasured."""
        ...

    def opened(self, items: Sequence[Any], cells: Sequence[Cell]) -> AbstractContextManager[Measure]:
        """Ready to measure a batch under some cells, the full model first."""
        ...

    def row_of(self, passes: Sequence[Pass]) -> dict[str, Any]:
        """What all batches cost under one plan."""
        ...

    def costs(self, passes: Mapping[str, Sequence[Pass]], cells: Sequence[Cell]) -> list[dict[str, float]]:
        """By key the costs of cells as shares of the full model's, those that compare with each other together."""
        ...


class OutOfMemory(Exception):
    """A batch did not fit."""


class Rounds:
    """Measures items under cells; what ``results`` holds already is not measured again.

    Random stands beside every method at an equal cost: where none does, cells are added behind the first batch, and once more
    behind the last if costs have drifted.

    Attributes:
        cells: all of them, those that were added behind the others.
    """

    def __init__(
        self, results: Results, work: Measuring, cells: Sequence[Cell], step: Progress = lambda done, total, what: None
    ):
        self.results, self.work, self.step = results, work, step
        self.cells = [WHOLE, *cells]
        data = results.data
        self.records: dict[str, dict[str, Record]] = data.setdefault("records", {})
        self.passes: dict[str, list[Pass]] = data.setdefault("passes", {})
        self.left: dict[str, str] = data.setdefault("left", {})
        self.failed: dict[str, dict[str, str]] = data.setdefault("failed", {})
        self.notes: list[str] = data.setdefault("notes", [])
        self._written, self._cost = perf_counter(), 0.0
        self._warm = self._beside = False
        self._restore()

    def _restore(self) -> None:
        """Cells of an earlier run that are not asked for again stay where every item was measured; and random ones do."""
        data = self.results.data
        names, here = {s["name"] for s in data["samples"]}, {c.key for c in self.cells}
        for key, told in data.get("cells", {}).items():
            kept = told["added"] or names <= set(self.records.get(key, ()))
            if key not in here and kept and told["plan"] is not None:
                self.cells.append(
                    Cell(
                        key, told["method"], told["keep"], Plan.from_json(told["plan"]), told["unranked"], told["added"]
                    )
                )

    def run(self, items: Sequence[Askable], size: int) -> None:
        """Measure what is missing; results are on disk afterwards, also after an interruption.

        Raises:
            ValueError: not even one item fits into memory.
        """
        try:
            size = self._through(items, size)  # what is missing, of cells that an earlier run added too
            while new := self._random_beside([]):
                self.cells += new
                size = self._through(items, size)
            self._leave_out(items)
        finally:
            self._save()

    def _through(self, items: Sequence[Askable], size: int) -> int:
        queue = deque(self.work.batches(items, size))
        while queue:
            batch = queue.popleft()
            try:
                self._batch(batch)
            except OutOfMemory as problem:
                if len(batch) == 1:
                    raise ValueError(
                        f"out of memory with one prompt ({batch[0].name}): {problem}; take a smaller model, or --dtype bfloat16"
                    ) from problem
                size = max(1, len(batch) // 2)
                self.note(
                    f"out of memory with {len(batch)} prompts; from {batch[0].name} on there are {size} in a batch"
                )
                self.step(*self._progress(items), self.notes[-1])
                rest = [item for some in (batch, *queue) for item in some]
                queue = deque(self.work.batches(rest, size))
            if perf_counter() - self._written >= self._cost / SPARE:
                self._save()
            self.step(*self._progress(items), "asking")
        return size

    def _missing(self, batch: Sequence[Askable]) -> list[Cell]:
        names = {item.name for item in batch}
        open_ = [c for c in self.cells if c.key not in self.left]
        return [c for c in open_ if names - set(self.records.get(c.key, ())) - set(self.failed.get(c.key, ()))]

    def _batch(self, batch: Sequence[Askable]) -> None:
        todo = self._missing(batch)
        if not todo:
            return
        made: list[Made] = []
        failed: dict[str, str] = {}
        problem: str | None = None
        try:
            if not self._warm:
                self.work.warm_up()
                self._warm = True
            with self.work.opened(batch, todo) as measure:
                ahead = deque([WHOLE, *(c for c in todo if c is not WHOLE)])
                while ahead:
                    cell = ahead.popleft()
                    try:
                        made.append((cell, *measure(cell)))
                    except ValueError as error:
                        if cell is WHOLE:
                            raise
                        failed[cell.key] = str(error)
                    if not ahead and not self._beside:
                        self._beside = True
                        new = self._random_beside(made)
                        self.cells += new
                        todo += new
                        ahead.extend(new)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            problem = str(error).splitlines()[0] if str(error) else "no memory left"
        if problem is not None:  # outside of the error, which holds what filled the memory
            made.clear()
            emptied()
            raise OutOfMemory(problem)
        for cell, records, facts in made:
            if cell in todo:
                self.records.setdefault(cell.key, {}).update(zip((i.name for i in batch), records, strict=True))
                self.passes.setdefault(cell.key, []).append({**facts, "items": [i.name for i in batch]})
        for key, why in failed.items():
            self.failed.setdefault(key, {}).update((item.name, why) for item in batch)

    def _leave_out(self, items: Sequence[Askable]) -> None:
        """Leave out plans that failed on most items; of others, the items that they failed on are left out for all."""
        for key, names in self.failed.items():
            problem = next(iter(names.values()))
            if 2 * len(names) > len(items):
                self.left[key] = problem
                continue
            told = ", ".join([*list(names)[:3], *(["..."] if len(names) > 3 else [])])
            self.note(f"{told}: left out for all, since {key} cannot take it ({problem})")

    def note(self, text: str) -> None:
        """Have something known of the run."""
        if text not in self.notes:
            self.notes.append(text)

    def answered(self, items: Sequence[str]) -> tuple[list[Cell], list[str]]:
        """The cells that have been through all items, and the items that every one of them has answered: what rows are of."""
        here = []
        for cell in self.cells:
            told = {*self.records.get(cell.key, ()), *self.failed.get(cell.key, ())}
            if cell.key not in self.left and set(items) <= told:
                here.append(cell)
        return here, [n for n in items if all(n in self.records.get(c.key, ()) for c in here)]

    def paid(self) -> dict[str, list[Pass]]:
        """What batches cost by cell, without those that hold an item which some plan could not take: costs are of the same."""
        bad = {name for names in self.failed.values() for name in names}
        return {key: [p for p in some if bad.isdisjoint(p["items"])] or some for key, some in self.passes.items()}

    def _random_beside(self, made: Sequence[Made]) -> list[Cell]:
        """Random at the costs at which it is missing; ``made`` is what was measured of a batch, and is not among the rest yet."""
        passes = {key: list(some) for key, some in self.paid().items()}
        for cell, _, facts in made:
            passes.setdefault(cell.key, []).append(facts)
        here = [c for c in self.cells if c.key in passes]
        known = {c.key for c in self.cells}
        new = [
            c
            for costs in self.work.costs(passes, here)
            for c in random_beside(costs, [h for h in here if h.key in costs])
        ]
        return list({c.key: c for c in new if c.key not in known}.values())

    def _progress(self, items: Sequence[Askable]) -> tuple[int, int]:
        cells = [c for c in self.cells if c.key not in self.left]
        return sum(len(self.records.get(c.key, ())) for c in cells), len(items) * len(cells)

    def _save(self) -> None:
        began = perf_counter()
        self.results.data["cells"] = {c.key: c.to_json() for c in self.cells}
        self.results.write()
        self._written = perf_counter()
        self._cost = self._written - began


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a device or on the host."""
    told = str(error)
    return (
        isinstance(error, (torch.OutOfMemoryError, MemoryError))
        or "can't allocate memory" in told
        or "out of memory" in told
    )


def emptied() -> None:
    """Have a device's allocator give up what it holds back."""
    if torch.accelerator.is_available() and torch.cuda.is_available():
        torch.cuda.empty_cache()
