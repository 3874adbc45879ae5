"""Measure one cell: a plan on a model over samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from tokensieve.bench.clocks import Peak, Split, Watchmaker, device
from tokensieve.bench.data import Sample
from tokensieve.bench.floor import turns
from tokensieve.bench.subject import Batch, Subject, prepare
from tokensieve.core.plan import Plan
from tokensieve.sites.cost import encoder_tokens, of_tokens
from tokensieve.sites.model.blocks import Stack
from tokensieve.sites.model.compatibility import cache_in
from tokensieve.sites.model.structure import Anatomy
from tokensieve.sites.sieve import Sieve


@dataclass(frozen=True)
class Reference:
    """What the full model said: answers, and log-probabilities of the first answer token ``(n, V)``."""

    answers: list[str]
    first: Tensor
    split: dict[str, float]
    tokens: float


FEW = 2
"""Prompts to warm up on, and on which overhead is measured."""


def measure(
    subject: Subject, batches: list[Batch], plan: Plan | None, full: Reference | None, new_tokens: int, seed: int
) -> tuple[dict[str, Any], Reference]:
    """One cell: answers, accuracy or agreement, tokens, cost, memory and times.

    Times are medians over the batches, per batch, in milliseconds (a first, unmeasured run on a few prompts warms up);
    decode is per generated token. Peak memory is that of the first batch, once warm, above the level before it. Tokens are
    visual ones of a prompt, whatever number of pieces its image comes in; KV bytes are held at the end of an answer, padding
    included, per prompt. Overhead is measured on the first few prompts, in turns with its floor.

    Returns:
        the cell's row (plain data), and what the model said, as a reference for other cells.
    """
    sieve = None if plan is None else Sieve(subject.model, plan, seed)
    watch = Watchmaker(subject.anatomy)
    answers: list[str] = []
    first: list[Tensor] = []
    splits: list[Split] = []
    tokens: list[list[float]] = []
    few = prepare(subject, batches[0].samples[:FEW], FEW)[0]
    peak = Peak(device(subject.model))
    kv = 0
    with watch.attached(), encoded(subject.anatomy.vision) as shapes:
        if sieve is not None:
            sieve.attach()
        try:
            subject.ask(few.inputs, 2)
            shapes.clear()
            for i, batch in enumerate(batches):
                with nullcontext() if i else peak, watch.watching(sieve) as split:
                    out = subject.ask(batch.inputs, new_tokens)
                splits.append(split)
                answers += subject.texts(batch.inputs, out)
                first.append(out.logits[0].float().log_softmax(-1).cpu())
                kv += kv_bytes(cache_in(out))
                if sieve is not None:
                    assert sieve.last is not None, "the prompts of a bench hold images"
                    tokens.append(sieve.last.of_prompts(len(batch.samples)))
        finally:
            if sieve is not None:
                sieve.detach()
    samples = [s for b in batches for s in b.samples]
    said = Reference(answers, torch.cat(first), _times(splits), _mean(batches, _visual(subject, batches)))
    row: dict[str, Any] = {
        **_quality(samples, said, full),
        "kv_bytes": round(kv / len(samples)),
        "peak_bytes": peak.bytes,
        "ms": said.split,
        **_tokens(subject, batches, plan, tokens, said.tokens, shapes),
    }
    if plan is not None and full is not None:
        floor, ours = turns(subject, few, plan, seed)
        row["ms_floor"] = round(floor, 3)
        row["overhead"] = round(ours / floor, 3)
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
    subject: Subject,
    batches: list[Batch],
    plan: Plan | None,
    seen: list[list[float]],
    n: float,
    shapes: list[tuple[int, ...]],
) -> dict[str, Any]:
    assert subject.anatomy.language is not None
    depth = len(subject.anatomy.language.layers)
    per_layer = [_mean(batches, [t[i] for t in seen]) for i in range(depth)] if seen else [n] * depth
    prompts, text = sum(len(b.samples) for b in batches), _mean(batches, _text(subject, batches))
    made = flops(subject.anatomy, plan, per_layer, n, text, shapes, prompts)
    return {
        "layer_tokens": [round(t, 2) for t in per_layer],
        "final_tokens": round(made["final_tokens"], 2),
        "mean_tokens": round(made["mean_tokens"], 2),
        "flops": made["flops"],
        "flops_share": round(made["flops"] / made["full_flops"], 4),
        "prefill_flops_share": round(made["prefill_share"], 4),
    }


def flops(
    anatomy: Anatomy,
    plan: Plan | None,
    per_layer: Sequence[float],
    visual: float,
    text: float,
    shapes: Sequence[tuple[int, ...]],
    prompts: int,
) -> dict[str, float]:
    """Tokens and FLOPs of a prompt.

    Args:
        per_layer: visual tokens in front of each layer of the language model; visual: without the plan; text: all others.
        shapes: of what the encoder was given for ``prompts`` prompts (see :func:`encoded`).
    """
    # Pictures of all sizes stand in one row: one for each prompt.
    images = sum(shape[0] if len(shape) == 2 else 0 for shape in shapes) / prompts or 1.0
    patches = sum(torch.Size(shape).numel() for shape in shapes) / prompts / images
    in_encoder = [patches] * (len(anatomy.vision.layers) if anatomy.vision else 0)
    inside = next((s for s in plan.stages if s.in_encoder), None) if plan is not None else None
    if inside is not None:
        in_encoder = encoder_tokens(anatomy, inside, round(patches), round(per_layer[0] / images))
    cost = of_tokens(anatomy, per_layer, [in_encoder], visual, text)
    return {
        "final_tokens": cost.final,
        "mean_tokens": cost.mean,
        "flops": cost.flops + images * cost.encoder_flops,
        "full_flops": cost.full_flops + images * cost.full_encoder_flops,
        "prefill_share": cost.flops / cost.full_flops,
    }


def _mean(batches: list[Batch], values: Sequence[float]) -> float:
    """Mean over prompts of the mean of each batch."""
    counts = [len(b.samples) for b in batches]
    return sum(n * v for n, v in zip(counts, values, strict=True)) / sum(counts)


def _visual(subject: Subject, batches: list[Batch]) -> list[float]:
    """Visual tokens of a prompt, mean of each batch."""
    return [float(subject.visual(b.inputs["input_ids"]).sum(1).float().mean()) for b in batches]


def _text(subject: Subject, batches: list[Batch]) -> list[float]:
    """Text tokens of a prompt, mean of each batch."""
    out = []
    for batch in batches:
        ids = batch.inputs["input_ids"]
        real = batch.inputs.get("attention_mask", torch.ones_like(ids)).bool()
        out.append(float((real & ~subject.visual(ids)).sum(1).float().mean()))
    return out


@contextmanager
def encoded(stack: Stack | None) -> Iterator[list[tuple[int, ...]]]:
    """Shapes of what the encoder's blocks are given, an entry a call (see :meth:`Stack.patches`)."""
    seen: list[tuple[int, ...]] = []

    def note(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        assert stack is not None
        seen.append(stack.patches(stack.given(args, kwargs)))

    hooks = [] if stack is None else [stack.layers[0].register_forward_pre_hook(note, with_kwargs=True)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def kv_bytes(cache: Any) -> int:
    """Bytes of memory behind a cache's keys and values: a view holds all that it was cut from, and shared memory counts once."""
    found = (getattr(layer, name, None) for layer in cache.layers for name in ("keys", "values"))
    memory = [x.untyped_storage() for x in found if isinstance(x, Tensor)]
    return sum({m.data_ptr(): m.nbytes() for m in memory}.values())
