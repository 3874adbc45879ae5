"""Asking: batches run in full and under plans by turns, timed and compared, and every number kept on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from tokensieve.core.files import write_json
from tokensieve.core.plan import Plan
from tokensieve.planner.encoders.fidelity import Neighbours, measured
from tokensieve.planner.encoders.items import EncoderInput
from tokensieve.planner.encoders.subject import EncoderOutput, EncoderSubject
from tokensieve.planner.halving import FULL, Replies
from tokensieve.sites.sieve import Sieve

FORMAT = "tokensieve.encoders.1"
ROUNDS = 3
"""Passes of each, by turns; the fastest counts."""


class AskingEncoder:
    """What a search asks, and what came of it.

    Attributes:
        measures: by plan and item every measure; tokens: by plan, in front of each block, of the last batch; seconds: by plan, of
            each batch ``[full, under the plan]``; packed: by plan, of each batch, how many blocks ran without padding, rows of
            different numbers of tokens one behind the other.
    """

    def __init__(
        self,
        subject: EncoderSubject,
        plans: Mapping[str, Plan],
        items: Sequence[EncoderInput],
        measure: str,
        file: Path,
        seed: int = 0,
    ):
        self.subject, self.plans, self.file, self.seed = subject, dict(plans), file, seed
        self.items, self.measure = {item.name: item for item in items}, measure
        self.near: Neighbours | None = None
        known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        if known and known.get("format") != FORMAT:
            raise ValueError(f"{file} holds no results of encoders; move it, or choose another --out")
        self.measures: dict[str, dict[str, dict[str, float]]] = known.get("measures", {})
        self.tokens: dict[str, list[float]] = known.get("tokens", {})
        self.seconds: dict[str, list[list[float]]] = known.get("seconds", {})
        self.packed: dict[str, list[int]] = known.get("packed", {})

    def embed(self, batch: int, step: Any) -> None:
        """Have the full model's vectors of all items, for ``neighbours``."""
        names, vectors = list(self.items), []
        for start in range(0, len(names), batch):
            step(start, len(names), "embedding all in full")
            some = [self.items[n] for n in names[start : start + batch]]
            vectors.append(self.subject.say(self.subject.inputs(some)).pooled)
        self.near = Neighbours(names, torch.cat(vectors)) if len(names) > 1 else None

    def __call__(self, names: Sequence[str], keys: Sequence[str]) -> dict[str, Replies | str]:
        items = [self.items[n] for n in names]
        inputs = self.subject.inputs(items)
        full = self.subject.say(inputs)
        out: dict[str, Replies | str] = {FULL: Replies([self._own(full, i, item) for i, item in enumerate(items)], 1.0)}
        for key in keys:
            try:
                out[key] = self._under(key, items, inputs, full)
            except (ValueError, RuntimeError) as error:
                out[key] = str(error).splitlines()[0]
        held = {"measures": self.measures, "tokens": self.tokens, "seconds": self.seconds, "packed": self.packed}
        write_json(self.file, {"format": FORMAT, **held})
        return out

    def _own(self, full: EncoderOutput, index: int, item: EncoderInput) -> float:
        """The full model's own score: 1, or whether it says the label."""
        return self._label(full, index, item) if self.measure == "labels" else 1.0

    def _label(self, said: EncoderOutput, index: int, item: EncoderInput) -> float:
        answer, names = said.answer[index], getattr(self.subject.model.config, "id2label", {})
        told = said.words[index] if answer is None else names.get(int(answer), answer) if answer.isdigit() else answer
        return float(told == item.label)

    def _under(self, key: str, items: Sequence[EncoderInput], inputs: dict[str, Any], full: EncoderOutput) -> Replies:
        sieve = Sieve(self.subject.model, self.plans[key], self.seed)
        with sieve:
            ours = self.subject.say(inputs)
            trace = sieve.last
        rows = measured(full, ours, [i.name for i in items], self.near)
        for i, (item, row) in enumerate(zip(items, rows, strict=True)):
            if item.label is not None:
                row["labels"] = self._label(ours, i, item)
            if self.measure not in row:
                raise ValueError(f"--measure {self.measure}: {self.subject.name} has none; it has {', '.join(row)}")
            self.measures.setdefault(key, {})[item.name] = row
        self.tokens[key] = trace.layer_tokens if trace is not None else []
        self.packed.setdefault(key, []).append(trace.packed if trace is not None else 0)
        times = self._timed(sieve, inputs)
        self.seconds.setdefault(key, []).append(times)
        return Replies([row[self.measure] for row in rows], times[1] / times[0])

    def _timed(self, sieve: Sieve, inputs: dict[str, Any]) -> list[float]:
        """Seconds in full and under the plan, the least of rounds by turns."""
        best = [float("inf"), float("inf")]
        for _ in range(ROUNDS):
            best[0] = min(best[0], self._seconds(inputs))
            with sieve:
                best[1] = min(best[1], self._seconds(inputs))
        return best

    def _seconds(self, inputs: dict[str, Any]) -> float:
        device = next(self.subject.model.parameters()).device
        wait = torch.cuda.synchronize if device.type == "cuda" else None
        if wait is not None:
            wait(device)
        start = perf_counter()
        self.subject.run(inputs)
        if wait is not None:
            wait(device)
        return perf_counter() - start
