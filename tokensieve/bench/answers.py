"""Answers: people's questions put to a model under one plan after another, batch by batch."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Any

import torch
from torch import Tensor

from tokensieve.bench.asking import QuestionPrompts, groups
from tokensieve.bench.clocks import Peak, Split, Watchmaker, device
from tokensieve.bench.equal import FULL, Cell, by_bytes
from tokensieve.bench.fronts import Fronts
from tokensieve.bench.measure import encoded, flops
from tokensieve.bench.metrics import METRICS
from tokensieve.bench.questions import Question
from tokensieve.bench.rounds import Measure, Pass, Record
from tokensieve.bench.subject import Subject
from tokensieve.core.plan import Plan, parted
from tokensieve.sites.cache.evicted_layer import cache_bytes
from tokensieve.sites.model.compatibility import DynamicCache, cache_argument, cache_in
from tokensieve.sites.sieve import Sieve
from tokensieve.sites.visual.shared_encoding import SharedEncoding


@dataclass(frozen=True)
class Said:
    """What a model said to a batch.

    Attributes:
        first: ``(B, V)``, log-probabilities of the first answer token.
        cache: as it was at the end.
    """

    answers: list[str]
    first: Tensor
    cache: Any


class Answers:
    """How questions are asked (see :class:`tokensieve.bench.rounds.Measuring`).

    Args:
        metric: the name of the one by which answers are scored; those of questions with choices always are by "choice".
        new_tokens: of an answer, at most.
    """

    def __init__(self, subject: Subject, metric: str, new_tokens: int, seed: int):
        self.subject, self.prompts, self.seed, self.new_tokens = subject, QuestionPrompts(subject), seed, new_tokens
        self.metric, self.choice = METRICS.get(metric), METRICS.get("choice")
        self._seen: set[str] = set()

    @cached_property
    def _fronts(self) -> Fronts:
        return Fronts(self.subject.processor.tokenizer, None, self.seed)

    def batches(self, items: Sequence[Question], size: int) -> list[list[Question]]:
        return groups(items, size)

    def sizes(self, question: Question) -> tuple[int, int]:
        """Visual and other tokens of a prompt."""
        ids = self.prompts.inputs([question])["input_ids"]
        visual = int(self.subject.visual(ids).sum())
        return visual, ids.numel() - visual

    def costs(self, passes: Mapping[str, Sequence[Pass]], cells: Sequence[Cell]) -> list[dict[str, float]]:
        """Mean visual tokens of plans that take some away, and the bytes of those that only take from the cache."""
        made = {c.key: self.row_of(passes[c.key]) for c in cells if c.key in passes}
        if FULL not in made:
            return []
        tokens = {c.key: made[c.key]["mean_tokens"] for c in cells if c.plan and not by_bytes(c.plan)}
        held = {c.key: made[c.key]["kv_bytes"] for c in cells if c.plan and by_bytes(c.plan)}
        visual, whole = made[FULL]["visual"], made[FULL]["kv_bytes"]
        return [{k: v / visual for k, v in tokens.items()} if visual else {}, {k: v / whole for k, v in held.items()}]

    @staticmethod
    def row_of(passes: Sequence[Pass]) -> dict[str, Any]:
        """What all batches under one plan cost: means over prompts, times as medians over batches."""
        total = sum(p["count"] for p in passes)

        def mean(name: str) -> float:
            return sum(p["count"] * p[name] for p in passes) / total

        each = {name: [p["ms"][name] for p in passes if p["ms"][name] is not None] for name in passes[0]["ms"]}
        peaks = [p["peak_bytes"] for p in passes if p["peak_bytes"] is not None]
        full = mean("full_flops")
        return {
            "ms": {name: round(median(times), 3) if times else None for name, times in each.items()},
            "kv_bytes": round(mean("kv_bytes")),
            "peak_bytes": max(peaks) if peaks else None,
            "visual": round(mean("visual"), 2),
            "mean_tokens": round(mean("mean_tokens"), 2),
            "final_tokens": round(mean("final_tokens"), 2),
            "flops_share": round(mean("flops") / full, 4) if full else None,
            "batch": max(p["count"] for p in passes),
        }

    def warm_up(self) -> None:
        """A short prompt without images: what a device loads at its first call is in no measured time."""
        made = self.subject.processor.tokenizer(["What is this?"], return_tensors="pt")
        ids = made["input_ids"].to(self.subject.model.device)
        self.subject.ask({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, 2)

    @contextmanager
    def opened(self, items: Sequence[Question], cells: Sequence[Cell]) -> Iterator[Measure]:
        """Ready to ask a batch; its images are encoded once for all plans that leave the encoder as it is."""
        subject, inputs = self.subject, self.prompts.inputs(items)
        plans = [p for c in cells if c.plan is not None and (p := parted(c.plan)[1]) is not None]
        sharing: Any = (
            SharedEncoding(subject.model, plans) if items[0].images and subject.anatomy.base else nullcontext()
        )
        with sharing as shared, encoded(subject.anatomy.vision) as shapes:
            first: list[Tensor] = []
            answers: list[str] = []
            patches: list[tuple[int, ...]] = []
            encoder: list[float] = []

            def ask(cell: Cell) -> tuple[list[Record], Pass]:
                shapes.clear()
                before = shared.seconds if shared is not None else 0.0
                front, inside = (None, None) if cell.plan is None else parted(cell.plan)
                given = inputs if front is None else self.prompts.inputs(self._fronts.questions(items, front))
                said, split, sieve, peak = self._ask(items, given, cell.key, inside)
                if cell.plan is None:
                    first[:], answers[:] = [said.first], said.answers
                    patches[:] = shapes or patches
                    if shared is not None and shared.seconds > before:  # without what listeners took of it
                        split.encoder = shared.seconds - before
                    encoder[:] = [split.encoder]
                elif not shapes:
                    split.encoder = encoder[0]  # it ran once, under the full model
                kl = (first[0].exp() * (first[0] - said.first)).sum(-1).clamp(min=0)
                records: list[Record] = []
                for i, (item, text) in enumerate(zip(items, said.answers, strict=True)):
                    score = (self.choice if item.choices else self.metric)(text, item.answers)
                    records.append(
                        {
                            "score": round(score, 4),
                            "said": text,
                            "same": text == answers[i],
                            "kl": round(float(kl[i]), 5),
                        }
                    )
                facts = self._facts(items, given, inside, sieve, split, said, peak, shapes or patches)
                if front is not None:
                    whole = self._facts(items, inputs, None, None, split, said, None, shapes or patches)
                    facts["full_flops"] = whole["full_flops"]
                return records, facts

            yield ask

    def _ask(
        self, items: Sequence[Question], inputs: Any, key: str, plan: Plan | None
    ) -> tuple[Said, Split, Sieve | None, int | None]:
        sieve = None if plan is None else Sieve(self.subject.model, plan, self.seed)
        watch = Watchmaker(self.subject.anatomy)
        fresh = key not in self._seen
        peak: Any = Peak(device(self.subject.model), not self._seen) if fresh else nullcontext()
        with peak, watch.attached(), sieve or nullcontext(), watch.watching(sieve) as split:
            said = self._choose(items, inputs) if items[0].choices else self._write(inputs)
        self._seen.add(key)
        return said, split, sieve, peak.bytes if fresh else None

    def _write(self, inputs: Any) -> Said:
        out = self.subject.ask(inputs, self.new_tokens)
        new = out.sequences[:, inputs["input_ids"].shape[1] :]
        texts = self.subject.processor.batch_decode(new, skip_special_tokens=True)
        return Said([" ".join(t.split()) for t in texts], _log(out.logits[0]), cache_in(out))

    @torch.no_grad()
    def _choose(self, items: Sequence[Question], inputs: Any) -> Said:
        """The likeliest choice of each question: the sum of its tokens' log-probabilities over its bytes."""
        model, config = self.subject.model, self.subject.model.config
        cache = DynamicCache(config=config.get_text_config(decoder=True))
        short = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
        first = _log(model(**inputs, **cache_argument(model, cache), use_cache=True, **short).logits[:, -1])
        tokens = [self.prompts.choices(item) for item in items]
        scores = [[0.0] * len(item.choices) for item in items]
        for number in range(max(map(len, tokens))):
            rows = [t[number] if number < len(t) else t[0] for t in tokens]
            likely = self._likely(inputs, copy.deepcopy(cache), first, rows)
            for item, score, one in zip(items, scores, likely, strict=True):
                if number < len(score):
                    score[number] = one / max(1, len(item.choices[number].encode()))
        best = [item.choices[max(range(len(s)), key=s.__getitem__)] for item, s in zip(items, scores, strict=True)]
        return Said(best, first, cache)

    def _likely(self, inputs: Any, cache: Any, first: Tensor, rows: Sequence[Sequence[int]]) -> list[float]:
        """Log-probability of each row's tokens behind its prompt."""
        model, longest = self.subject.model, max(map(len, rows))
        ids = torch.tensor([[*r, *[0] * (longest - len(r))] for r in rows], device=model.device)
        real = torch.tensor([[i < len(r) for i in range(longest)] for r in rows], device=model.device)
        logs = [first.to(model.device)[:, None]]
        if longest > 1:
            mask = torch.cat([inputs["attention_mask"], real[:, :-1].to(inputs["attention_mask"].dtype)], 1)
            out = model(input_ids=ids[:, :-1], attention_mask=mask, **cache_argument(model, cache))
            logs.append(out.logits.float().log_softmax(-1))
        each = torch.cat(logs, 1).gather(2, ids[..., None])[..., 0]
        return (each * real).sum(1).tolist()

    def _facts(
        self,
        items: Sequence[Question],
        inputs: Any,
        plan: Plan | None,
        sieve: Sieve | None,
        split: Split,
        said: Said,
        peak: int | None,
        shapes: Sequence[tuple[int, ...]],
    ) -> Pass:
        count, ids = len(items), inputs["input_ids"]
        real = inputs.get("attention_mask", torch.ones_like(ids)).bool()
        seen = self.subject.visual(ids) & real
        visual = float(seen.sum()) / count
        trace = None if sieve is None else sieve.last
        language = self.subject.anatomy.language
        assert language is not None
        # What leaves the cache has been through the prefill.
        thinned = trace is not None and plan is not None and not by_bytes(plan)
        layers = trace.of_prompts(count) if thinned and trace else [visual] * len(language.layers)
        text = float((real & ~seen).sum()) / count
        return {
            "count": count,
            "ms": {
                "encoder": 1000 * split.encoder,
                "selection": 1000 * split.selection,
                "prefill": 1000 * split.prefill,
                "decode": None if items[0].choices else 1000 * split.decode,
                "total": 1000 * (split.encoder + split.selection + split.prefill + sum(split.steps)),
            },
            "kv_bytes": cache_bytes(said.cache) / count,
            "peak_bytes": peak,
            "visual": visual,
            **flops(self.subject.anatomy, plan, layers, visual, text, shapes, count),
        }


def _log(logits: Tensor) -> Tensor:
    return logits.float().log_softmax(-1).cpu()
