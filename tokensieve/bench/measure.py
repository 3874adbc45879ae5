"""Measure one cell: a plan on a model over samples."""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor

from tokensieve.bench import floor
from tokensieve.bench.clocks import Split, Watchmaker
from tokensieve.bench.cost import encoder_shapes, of_encoder, of_tokens
from tokensieve.bench.data import Sample
from tokensieve.bench.memory import Peak
from tokensieve.bench.subject import Subject
from tokensieve.method import Method
from tokensieve.plan import Plan
from tokensieve.reduction import Reduction
from tokensieve.signals import Signals
from tokensieve.sites.sieve import Sieve


@dataclass(frozen=True)
class Reference:
    """What the full model said: answers, and log-probabilities of the first answer token ``(n, V)``."""

    answers: list[str]
    first: Tensor
    split: dict[str, float]
    tokens: float
    encoder_flops: float


@dataclass(frozen=True)
class Batch:
    """Prepared inputs of some samples."""

    samples: list[Sample]
    inputs: Any


def prepare(subject: Subject, samples: list[Sample], size: int) -> list[Batch]:
    groups = [samples[i : i + size] for i in range(0, len(samples), size)]
    return [Batch(g, subject.inputs(g)) for g in groups]


def measure(
    subject: Subject, batches: list[Batch], plan: Plan | None, full: Reference | None, new_tokens: int, seed: int
) -> tuple[dict[str, Any], Reference]:
    """One cell: answers, accuracy or agreement, tokens, cost, memory and times.

    Times are medians over the whole batches, per batch, in milliseconds; decode is per generated token. A first, untimed run on the
    first batch warms up, and is where peak memory is taken.

    Returns:
        the cell's row (plain data), and what the model said, as a reference for other cells.
    """
    sieve = None if plan is None else Sieve(subject.model, plan, seed)
    watch = Watchmaker(subject.anatomy)
    answers: list[str] = []
    first: list[Tensor] = []
    splits: list[Split] = []
    tokens: list[list[float]] = []
    kv = 0
    peak = Peak()
    with watch.attached():
        if sieve is not None:
            sieve.attach()
        try:
            with peak, encoder_shapes(subject.anatomy) as shapes:
                subject.ask(batches[0].inputs, 2)
            for batch in batches:
                with watch.watching(sieve) as split:
                    out = subject.ask(batch.inputs, new_tokens)
                if len(batch.samples) == len(batches[0].samples):
                    splits.append(split)
                answers += subject.texts(batch.inputs, out)
                first.append(out.logits[0].float().log_softmax(-1).cpu())
                kv += _held(out.past_key_values)
                if sieve is not None and sieve.last is not None:
                    tokens.append(sieve.last.layer_tokens)
        finally:
            if sieve is not None:
                sieve.detach()
    samples = [s for b in batches for s in b.samples]
    encoder = of_encoder(subject.anatomy, _per_prompt(shapes, len(batches[0].samples)))
    said = Reference(answers, torch.cat(first), _times(splits), _visual(subject, batches[0]), encoder)
    row: dict[str, Any] = {
        **_quality(samples, said, full),
        "kv_bytes": round(kv / len(samples)),
        "peak_bytes": peak.bytes,
        "ms": said.split,
        **_tokens(subject, tokens, said, full or said, _text(subject, batches[0])),
    }
    if plan is not None and full is not None:
        least = floor.prefill(subject.anatomy, _text(subject, batches[0]), row["layer_tokens"])
        row["ms_floor"] = round(least, 3)
        row["overhead"] = round((said.split["prefill"] + said.split["selection"]) / least, 3)
        row["break_even"] = break_even(full.split, said.split, full.tokens, row["mean_tokens"])
    return row, said


def break_even(full: dict[str, float], ours: dict[str, float], n: float, m: float) -> dict[str, float | None]:
    """From how many visual tokens on, and up to how many answer tokens, a plan pays at all.

    Prefill time is taken as linear in the mean visual tokens between the two measured points, the cost of selection as
    measured. ``min_tokens`` is where what prefill and encoder save equals what selection costs; None: never. ``max_answer`` is
    where a slower decode step has eaten the gain; None: it never does.
    """
    saved = full["prefill"] - ours["prefill"] + full["encoder"] - ours["encoder"]
    gain = saved - ours["selection"]
    slope = saved / (n - m) if n > m else 0.0
    slower = ours["decode"] - full["decode"]
    return {
        "min_tokens": round(m + ours["selection"] / slope) if slope > 0 else None,
        "max_answer": None if slower <= 0 else max(0, round(gain / slower)),
        "pays": bool(gain > 0),
    }


def _times(splits: list[Split]) -> dict[str, float]:
    names = ("encoder", "selection", "prefill", "decode")
    out = {name: round(1000 * median(getattr(s, name) for s in splits), 3) for name in names}
    total = median(s.encoder + s.selection + s.prefill + sum(s.steps) for s in splits)
    return out | {"total": round(1000 * total, 3)}


def _quality(samples: list[Sample], said: Reference, full: Reference | None) -> dict[str, Any]:
    right: dict[str, list[bool]] = {}
    for sample, text in zip(samples, said.answers, strict=True):
        if sample.answer is not None:
            right.setdefault(sample.kind, []).append(text == sample.answer)
    accuracy = {k: round(sum(v) / len(v), 4) for k, v in right.items()}
    out: dict[str, Any] = {
        "accuracy": accuracy,
        "accuracy_mean": round(sum(accuracy.values()) / len(accuracy), 4) if accuracy else None,
        "answers": said.answers,
    }
    if full is not None:
        same = [a == b for a, b in zip(said.answers, full.answers, strict=True)]
        kl = (full.first.exp() * (full.first - said.first)).sum(-1).mean()
        out |= {"agreement": round(sum(same) / len(same), 4), "kl": round(float(kl), 5)}
    return out


def _tokens(
    subject: Subject, seen: list[list[float]], said: Reference, full: Reference, text: Tensor
) -> dict[str, Any]:
    assert subject.anatomy.language is not None
    depth = len(subject.anatomy.language.layers)
    per_layer = [sum(t[i] for t in seen) / len(seen) for i in range(depth)] if seen else [said.tokens] * depth
    words = float(text.sum(1).float().mean())
    cost = of_tokens(subject.anatomy, per_layer, full.tokens, words, said.encoder_flops, full.encoder_flops)
    return {
        "layer_tokens": [round(t, 2) for t in per_layer],
        "final_tokens": round(cost.final, 2),
        "mean_tokens": round(cost.mean, 2),
        "flops": cost.flops + cost.encoder_flops,
        "flops_share": round(cost.share, 4),
        "prefill_flops_share": round(cost.flops / cost.full_flops, 4),
    }


def _per_prompt(shapes: list[tuple[float, float]], prompts: int) -> list[tuple[float, float]]:
    """(sequences, tokens of each) for one prompt; encoders that pack all images into one sequence are taken apart."""
    apart = [(prompts, n / prompts) if sequences == 1 else (sequences, n) for sequences, n in shapes]
    return [(sequences / prompts, n) for sequences, n in apart]


def _visual(subject: Subject, batch: Batch) -> float:
    """Visual tokens of a prompt, mean over a batch."""
    return float((batch.inputs["input_ids"] == subject.anatomy.image_token_id).sum(1).float().mean())


def _text(subject: Subject, batch: Batch) -> Tensor:
    """``(B, T)`` bool: the text tokens of each prompt, False at padding, on the left."""
    ids = batch.inputs["input_ids"]
    real = batch.inputs.get("attention_mask", torch.ones_like(ids)).bool() & (ids != subject.anatomy.image_token_id)
    counts = real.sum(1, keepdim=True)
    steps = torch.arange(int(counts.max()), device=ids.device)
    return steps >= counts.max() - counts


def _held(cache: Any) -> int:
    return sum(x.numel() * x.element_size() for layer in cache.layers for x in (layer.keys, layer.values))


@dataclass(frozen=True)
class Free(Method):
    """Keeps the first tokens: a selection that costs nothing, for the floor of plans inside the language model."""

    sites = ("encoder", "handoff", "prefill")

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        return Reduction.keep((s.valid.long().cumsum(1) <= keep[:, None]) & s.valid)
