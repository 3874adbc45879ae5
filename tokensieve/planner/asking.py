"""Asking: people's own items put to a model under the plans of a search, and what was said kept on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokensieve.bench.equal import FULL, WHOLE, Cell
from tokensieve.bench.metrics import METRICS
from tokensieve.bench.rounds import Askable, Measuring, Pass, Record, emptied, out_of_memory
from tokensieve.core.files import write_json
from tokensieve.planner.told import Replies

FORMAT = "tokensieve.answers.1"
WRITTEN = 128
"""Tokens that are written behind a text, where the time of reading it is counted."""

Score = Callable[[Any, Record, Record], float]
"""Of an item, what was found of it, and what was found of it under the full model."""


class Asking:
    """What a search asks (see :data:`tokensieve.planner.halving.Ask`).

    Args:
        work: how items are asked; cells: plans by name.
        score, cost: what counts of records, and of passes.
        file: where both are kept; an earlier run's are read.

    Attributes:
        records: by plan and item; passes: by plan and the first item of those that were asked together.
        notes: what has to be known.
    """

    def __init__(
        self,
        work: Measuring,
        cells: Mapping[str, Cell],
        items: Sequence[Askable],
        score: Score,
        cost: Callable[[Pass], float],
        file: Path,
    ):
        self._work, self._cells, self._items = work, cells, {i.name: i for i in items}
        self._score, self._cost, self._file, self._warm = score, cost, file, False
        self._data: dict[str, Any] = {"format": FORMAT, "records": {}, "passes": {}, "notes": []}
        if file.exists():
            self._data = json.loads(file.read_text(encoding="utf-8"))
        self.records: dict[str, dict[str, Record]] = self._data["records"]
        self.passes: dict[str, dict[str, Pass]] = self._data["passes"]
        self.notes: list[str] = self._data["notes"]

    def __call__(self, items: Sequence[str], candidates: Sequence[str]) -> dict[str, Replies | str]:
        if not self._warm:
            self._work.warm_up()
            self._warm = True
        asked = [self._items[name] for name in items]
        left: dict[str, str] = {}
        paid: dict[str, list[Pass]] = {}
        for batch in self._work.batches(asked, len(asked)):
            self._batch(batch, candidates, left, paid)
        write_json(self._file, self._data)
        out: dict[str, Replies | str] = {}
        for key in (FULL, *candidates):
            if key in left:
                out[key] = left[key]
                continue
            scores = [self.score_of(item, key) for item in asked]
            ours, whole_cost = (sum(map(self._cost, paid[k])) for k in (key, FULL))
            out[key] = Replies(scores, ours / whole_cost)
        return out

    def score_of(self, item: Askable, key: str) -> float:
        """What an item that was asked counts under a plan, or the full model."""
        return self._score(item, self.records[key][item.name], self.records[FULL][item.name])

    def _batch(
        self, batch: Sequence[Any], candidates: Sequence[str], left: dict[str, str], paid: dict[str, list[Pass]]
    ) -> None:
        """Ask a batch, in halves where memory runs out."""
        made: list[tuple[str, list[Record], Pass]] = []
        problem = ""
        try:
            todo = [self._cells[c] for c in candidates if c not in left]
            with self._work.opened(batch, [WHOLE, *todo]) as measure:
                made.append((FULL, *measure(WHOLE)))
                for cell in todo:
                    try:
                        made.append((cell.key, *measure(cell)))
                    except ValueError as error:
                        left[cell.key] = str(error)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if len(batch) == 1:
                raise ValueError(
                    f"out of memory with one prompt ({batch[0].name}); take a smaller model, or --dtype bfloat16"
                ) from error
            problem = f"out of memory with {len(batch)} prompts; they are asked in halves (--batch)"
        if problem:  # outside of the error, which holds what filled the memory
            made.clear()
            emptied()
            if problem not in self.notes:
                self.notes.append(problem)
            half = (len(batch) + 1) // 2
            self._batch(batch[:half], candidates, left, paid)
            self._batch(batch[half:], candidates, left, paid)
            return
        for key, records, facts in made:
            self.records.setdefault(key, {}).update(zip((i.name for i in batch), records, strict=True))
            self.passes.setdefault(key, {})[batch[0].name] = facts
            paid.setdefault(key, []).append(facts)


# ---- what counts --------------------------------------------------------------------------------------------------------


def of_questions(item: Any, ours: Record, full: Record) -> float:
    """The score of an answer."""
    return float(ours["score"])


def of_images(item: Any, ours: Record, full: Record) -> float:
    """Token F1 with the full model's answer."""
    return METRICS.get("f1")(ours["said"], [full["said"]])


def of_texts(item: Any, ours: Record, full: Record) -> float:
    """Bits of what comes next in a text, less those by which they rise: of sums, 1 minus the relative rise of bits per byte."""
    return item.size * (2 * full["bits"] - ours["bits"])


def flops(facts: Pass) -> float:
    """FLOPs of encoder and prefill."""
    return float(facts["count"] * facts["flops"])


def memory(facts: Pass) -> float:
    """Bytes of the cache."""
    return float(facts["count"] * facts["kv_bytes"])


def latency(facts: Pass) -> float:
    """Milliseconds of a batch: of answers to the end; of texts of reading and ``WRITTEN`` tokens behind."""
    ms = facts["ms"]
    return float(ms["total"] if "total" in ms else ms["prefill"] + ms["selection"] + WRITTEN * ms["decode"])


COSTS = {"latency": latency, "memory": memory, "flops": flops}
