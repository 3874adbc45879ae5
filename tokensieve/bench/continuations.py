"""Continuations: what a language model still knows of people's texts once its cache was compressed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from tokensieve.bench.clocks import Peak
from tokensieve.bench.equal import FULL, Cell
from tokensieve.bench.rounds import Measure, Pass, Record
from tokensieve.bench.texts import Text
from tokensieve.sites.cache.evicted_layer import cache_bytes
from tokensieve.sites.cache.prefix import prefill
from tokensieve.sites.cache.recording import Recording, record, replayable
from tokensieve.sites.model.clock import device, now
from tokensieve.sites.model.compatibility import cache_argument
from tokensieve.sites.sieve import Sieve
from tokensieve.testbed.lm.tasks import TaskSample

STEPS = 8
"""Tokens that are written one by one, to time them."""
BEFORE = 2
"""Facts of a text that are asked for within the prompt, each by itself."""


@dataclass(frozen=True)
class Reading:
    """A text as it was prefilled once, for all methods.

    Attributes:
        plain: its context; planted: the same with facts in it; asked: that with one question behind it, each.
    """

    plain: Recording
    planted: Recording | None
    asked: Sequence[Recording]


class Continuations:
    """How texts are read (see :class:`tokensieve.bench.rounds.Measuring`): one at a time, one prefill for all methods.

    Args:
        peaks: whether peak memory is measured, which takes each plan a prefill of its own.
    """

    def __init__(self, model: Any, seed: int, peaks: bool = True):
        self.model, self.seed, self._peaks = model, seed, peaks
        self._seen: set[str] = set()

    def batches(self, items: Sequence[Text], size: int) -> list[list[Text]]:
        return [[item] for item in items]

    def warm_up(self) -> None:
        """A few tokens: what a device loads at its first call is in no measured time."""
        prefill(self.model, self._ids([0] * 8))

    @contextmanager
    def opened(self, items: Sequence[Text], cells: Sequence[Cell]) -> Iterator[Measure]:
        """Ready to read a text: its prefill is recorded, and each method compresses a copy."""
        text = items[0]
        plain, planted, asked = record(self.model, self._ids(text.ids[: text.context])), None, list[Recording]()
        if (sample := text.planted) is not None:
            planted = record(self.model, self._ids(sample.ids[: sample.context]))
            asked = [planted.extended(self._ids(sample.ids[a:b])) for a, b in _questions(sample)[:BEFORE]]
        reading, full = Reading(plain, planted, asked), list[Tensor]()

        def read(cell: Cell) -> tuple[list[Record], Pass]:
            sieve = None if cell.plan is None else Sieve(self.model, cell.plan, self.seed)
            with sieve or nullcontext():
                made, facts, log = self._read(text, reading, cell, sieve)
                if cell.plan is None:
                    full[:] = [log]
                facts["peak_bytes"] = self._peak(plain, cell)
            same = (log.argmax(-1) == full[0].argmax(-1)).float().mean()
            kl = (full[0].exp() * (full[0] - log)).sum(-1).clamp(min=0).mean()
            return [made | {"agree": round(float(same), 5), "kl": round(float(kl), 6)}], facts

        yield read

    @torch.no_grad()
    def _read(self, text: Text, reading: Reading, cell: Cell, sieve: Sieve | None) -> tuple[Record, Pass, Tensor]:
        slow = sieve is not None and any(s.every or s.cache_method.sparse_decode for s in sieve.plan.stages)
        if sieve is not None:
            sieve.timed = True
        cache, seconds = self._cache(reading.plain, sieve)
        chosen = 0.0 if sieve is None else sieve.seconds
        held = cache_bytes(cache)
        gold = torch.as_tensor(text.ids[text.context :], device=self.model.device)
        logits, times = self._follow(cache, text.context, gold, slow)
        log = logits.float().log_softmax(-1)
        nats = -log.gather(-1, gold[1:, None]).mean()
        made: Record = {
            "nats": round(float(nats), 6),
            "bits": round(float(nats) * (len(gold) - 1) / text.size / math.log(2), 6),
        }
        if reading.planted is not None and (sample := text.planted) is not None:
            made["after"] = self._after(sample, self._cache(reading.planted, sieve)[0], slow)
            made["before"] = self._before(sample, [self._cache(r, sieve)[0] for r in reading.asked], slow)
        ms = {"prefill": 1000 * seconds, "selection": 1000 * chosen, "decode": 1000 * median(times)}
        return made, {"count": 1, "tokens": text.context, "kv_bytes": held, "ms": ms}, log

    def _cache(self, made: Recording, sieve: Sieve | None) -> tuple[Any, float]:
        """The cache that a prefill would leave under what is attached, and the seconds of the prefill without selection."""
        if sieve is None:
            return made.full(), made.seconds
        if replayable(sieve.plan):
            return made.compressed(), made.seconds
        where, chosen = device(self.model), sieve.seconds
        began = now(where)
        cache = prefill(self.model, made.inputs)
        return cache, now(where) - began - (sieve.seconds - chosen)

    def _follow(self, cache: Any, past: int, ids: Tensor, slow: bool) -> tuple[Tensor, list[float]]:
        """Logits ``(n - 1, V)`` for ``ids[1:]`` behind a cache, and the seconds of tokens that come one by one behind them.

        Args:
            slow: give all of them one by one, for methods that act on decoded tokens.
        """
        logits: list[Tensor] = []
        times: list[float] = []
        for part in ids[:-1].split(1) if slow else [ids[:-1]]:
            logits.append(self._step(cache, past, part, times))
            past += len(part)
        for _ in range(0 if slow else STEPS):
            self._step(cache, past, ids[-1:], times)
            past += 1
        return torch.cat(logits), times if slow else times[-STEPS:]

    def _step(self, cache: Any, past: int, ids: Tensor, times: list[float]) -> Tensor:
        where = device(self.model)
        began, upto = now(where), past + len(ids)
        out = self.model(
            ids[None],
            **cache_argument(self.model, cache),
            attention_mask=torch.ones(1, upto, dtype=torch.long, device=ids.device),
            position_ids=torch.arange(past, upto, device=ids.device)[None],
            use_cache=True,
        ).logits[0]
        times.append(now(where) - began)
        return out

    def _after(self, sample: TaskSample, cache: Any, slow: bool) -> float:
        """The share of the facts that are told rightly, all asked behind the compressed context."""
        ids = torch.as_tensor(sample.ids[sample.context :], device=self.model.device)
        right = self._right(cache, sample.context, ids, slow)
        spans = [(a - sample.context - 1, b - sample.context - 1) for a, b in sample.answers]
        return sum(all(right[a:b]) for a, b in spans) / len(spans)

    def _before(self, sample: TaskSample, caches: Sequence[Any], slow: bool) -> float:
        """The share of those whose question the method had seen when it chose. Its last token comes behind the choice, so that
        the answer is told from what was left."""
        told = []
        for cache, (start, end), (a, b) in zip(caches, _questions(sample), sample.answers, strict=False):
            ids = torch.as_tensor(sample.ids[a - 1 : b], device=self.model.device)
            told.append(all(self._right(cache, sample.context + end - start, ids, slow)))
        return sum(told) / len(told)

    def _right(self, cache: Any, past: int, ids: Tensor, slow: bool) -> list[bool]:
        logits = [self._step(cache, past + i, part, []) for i, part in _parts(ids[:-1], slow)]
        return (torch.cat(logits).argmax(-1) == ids[1:]).tolist()

    def _peak(self, plain: Recording, cell: Cell) -> int | None:
        """Of a prefill of its own under what is attached, once."""
        if not self._peaks or cell.key in self._seen:
            return None
        first = not self._seen
        self._seen.add(cell.key)
        with Peak(device(self.model), first) as peak:
            prefill(self.model, plain.inputs)
        return peak.bytes

    def _ids(self, ids: Any) -> Tensor:
        return torch.as_tensor(ids, device=self.model.device)[None]

    def costs(self, passes: Mapping[str, Sequence[Pass]], cells: Sequence[Cell]) -> list[dict[str, float]]:
        """Bytes held behind the prompt."""
        held = {c.key: sum(p["kv_bytes"] for p in passes[c.key]) / len(passes[c.key]) for c in cells if c.key in passes}
        return [{key: x / held[FULL] for key, x in held.items() if key != FULL}] if FULL in held else []

    @staticmethod
    def row_of(passes: Sequence[Pass]) -> dict[str, Any]:
        """What all texts cost under one plan: bytes as a mean, times as medians."""
        peaks = [p["peak_bytes"] for p in passes if p["peak_bytes"] is not None]
        return {
            "kv_bytes": round(sum(p["kv_bytes"] for p in passes) / len(passes)),
            "peak_bytes": max(peaks) if peaks else None,
            "ms": {name: round(median(p["ms"][name] for p in passes), 3) for name in passes[0]["ms"]},
        }


def _questions(sample: TaskSample) -> list[tuple[int, int]]:
    """Where each question stands, up to its last token."""
    each = (len(sample.ids) - sample.context) // len(sample.answers)
    return [(sample.context + i * each, a - 1) for i, (a, _) in enumerate(sample.answers)]


def _parts(ids: Tensor, slow: bool) -> list[tuple[int, Tensor]]:
    return list(enumerate(ids.split(1))) if slow else [(0, ids)]
