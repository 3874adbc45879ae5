"""Measure one cell: a plan on a model over samples."""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor

from tokensieve import testbed
from tokensieve.bench.clocks import Peak, Split, Watchmaker, now
from tokensieve.bench.cost import encoder_tokens, of_tokens
from tokensieve.bench.data import Sample
from tokensieve.bench.subject import Subject
from tokensieve.method import Method
from tokensieve.plan import Plan, Stage
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

    Times are medians over the batches, per batch, in milliseconds (a first, unmeasured run on the first batch warms up);
    decode is per generated token. Peak memory is that of the first batch above the level before it.

    Returns:
        the cell's row (plain data), and what the model said, as a reference for other cells.
    """
    sieve = None if plan is None else Sieve(subject.model, plan, seed)
    watch = Watchmaker(subject.anatomy)
    answers: list[str] = []
    first: list[Tensor] = []
    splits: list[Split] = []
    tokens: list[list[float]] = []
    per = 1.0  # pictures that a budget counts, in a prompt
    kv = 0
    peak = Peak()
    with watch.attached():
        if sieve is not None:
            sieve.attach()
        try:
            with peak:
                subject.ask(batches[0].inputs, 2)
            for batch in batches:
                with watch.watching(sieve) as split:
                    out = subject.ask(batch.inputs, new_tokens)
                splits.append(split)
                answers += subject.texts(batch.inputs, out)
                first.append(out.logits[0].float().log_softmax(-1).cpu())
                kv += _held(out.past_key_values)
                if sieve is not None and sieve.last is not None:
                    per = len(sieve.last.rows) / len(batch.samples)
                    tokens.append([per * n for n in sieve.last.layer_tokens])
        finally:
            if sieve is not None:
                sieve.detach()
    samples = [s for b in batches for s in b.samples]
    said = Reference(answers, torch.cat(first), _times(splits), _visual(subject, batches[0]))
    row: dict[str, Any] = {
        **_quality(samples, said, full),
        "kv_bytes": round(kv / len(samples)),
        "peak_bytes": peak.bytes,
        "ms": said.split,
        **_tokens(subject, plan, tokens, said.tokens, _text(subject, batches[0]), _pictures(batches[0])),
    }
    if plan is not None and full is not None:
        floor = _floor(subject, batches[0], plan, row["layer_tokens"], per, seed)
        row["ms_floor"] = round(floor, 3)
        row["overhead"] = round((said.split["prefill"] + said.split["selection"]) / floor, 3)
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
    subject: Subject, plan: Plan | None, seen: list[list[float]], n: float, text: float, pictures: int
) -> dict[str, Any]:
    assert subject.anatomy.language is not None
    patches = n if pictures == 1 else float(testbed.PATCHES)
    depth = len(subject.anatomy.language.layers)
    per_layer = [sum(t[i] for t in seen) / len(seen) for i in range(depth)] if seen else [n] * depth
    in_encoder = [patches] * (len(subject.anatomy.vision.layers) if subject.anatomy.vision else 0)
    inside = next((s for s in plan.stages if s.site == "encoder"), None) if plan is not None else None
    if inside is not None:
        in_encoder = encoder_tokens(subject.anatomy, inside, round(patches), round(per_layer[0] * patches / n))
    cost = of_tokens(subject.anatomy, per_layer, in_encoder, n, text, pictures, patches)
    return {
        "layer_tokens": [round(t, 2) for t in per_layer],
        "final_tokens": round(cost.final, 2),
        "mean_tokens": round(cost.mean, 2),
        "flops": cost.flops + cost.encoder_flops,
        "flops_share": round(cost.share, 4),
        "prefill_flops_share": round(cost.flops / cost.full_flops, 4),
    }


def _visual(subject: Subject, batch: Batch) -> float:
    """Visual tokens of a prompt, mean over a batch."""
    return float(_seen(subject, batch.inputs["input_ids"]).sum(1).float().mean())


def _seen(subject: Subject, ids: Tensor) -> Tensor:
    marks = subject.anatomy.placeholders(ids, None)
    return marks["image"] | marks["video"]


def _pictures(batch: Batch) -> int:
    """Pictures that the encoder sees for a prompt."""
    item = batch.samples[0].several
    return 1 if item is None else testbed.PICTURES[item.form]


def _text(subject: Subject, batch: Batch) -> float:
    """Text tokens of a prompt, mean over a batch."""
    ids = batch.inputs["input_ids"]
    real = batch.inputs.get("attention_mask", torch.ones_like(ids)).bool() & ~_seen(subject, ids)
    return float(real.sum(1).float().mean())


def _held(cache: Any) -> int:
    held = (getattr(layer, name, None) for layer in cache.layers for name in ("keys", "values"))
    return sum(x.numel() * x.element_size() for x in held if isinstance(x, Tensor))


@dataclass(frozen=True)
class Free(Method):
    """Keeps the first tokens: a selection that costs nothing, for the floor of plans inside the language model."""

    sites = ("encoder", "handoff", "prefill")

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        return Reduction.keep((s.valid.long().cumsum(1) <= keep[:, None]) & s.valid)


def _floor(subject: Subject, batch: Batch, plan: Plan, layer_tokens: list[float], per: float, seed: int) -> float:
    """Milliseconds of prefill for the same prompt given only the kept tokens, with no selection; median of 2.

    In front of the language model: a prompt of that length. Inside it: the same counts per layer, by taking the first tokens.
    """
    assert subject.anatomy.language is not None
    inside = [s for s in plan.stages if s.site == "prefill"]
    counts = {s: round(layer_tokens[subject.anatomy.language.layer(s.layer)] / per) for s in inside}
    given = [replace(s, method=Free(), keep=count) for s, count in counts.items()]
    ahead = [Stage(Free(), round(layer_tokens[0] / per), "handoff")] if len(inside) < len(plan.stages) else []
    times = []
    for _ in range(3):
        if inside:
            times.append(_prefill(subject, batch, Plan([*ahead, *given]), seed))
        else:
            times.append(_short(subject, batch, round(layer_tokens[0])))
    return 1000 * median(times[1:])


def _prefill(subject: Subject, batch: Batch, plan: Plan, seed: int) -> float:
    watch, sieve = Watchmaker(subject.anatomy), Sieve(subject.model, plan, seed)
    with watch.attached(), sieve, watch.watching(sieve) as split:
        subject.ask(batch.inputs, 1)
    return split.prefill


@torch.no_grad()
def _short(subject: Subject, batch: Batch, tokens: int) -> float:
    language = subject.anatomy.language
    assert language is not None
    ids = batch.inputs["input_ids"]
    mask = batch.inputs.get("attention_mask", torch.ones_like(ids))
    visual = _seen(subject, ids)
    text = int((mask.bool() & ~visual).sum(1).max())
    embed = subject.model.get_input_embeddings()(
        torch.zeros(len(ids), text + tokens, dtype=torch.long, device=ids.device)
    )
    short = torch.ones(embed.shape[:2], dtype=torch.long, device=ids.device)
    for row, n in enumerate((mask.bool() & ~visual).sum(1).tolist()):
        short[row, : text - n] = 0
    began = now()
    language.root(inputs_embeds=embed, attention_mask=short, use_cache=True)
    return now() - began
