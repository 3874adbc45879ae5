"""The floor: the same prompts given only the kept tokens, with no selection."""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import median

import torch
from torch import Tensor

from tokensieve.bench.clocks import Split, Watchmaker, device, now
from tokensieve.bench.subject import Batch, Subject
from tokensieve.core.method import Method
from tokensieve.core.plan import Plan
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.core.stage import Stage
from tokensieve.parts.budget import Keep
from tokensieve.sites.sieve import Sieve


@dataclass(frozen=True)
class Free(Method):
    """Keeps the first tokens: a selection that costs nothing, for the floor of plans inside the language model."""

    sites = ("encoder", "handoff", "prefill")

    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        return Reduction.keep((s.valid.long().cumsum(1) <= keep[:, None]) & s.valid)


def turns(subject: Subject, batch: Batch, plan: Plan, seed: int) -> tuple[float, float]:
    """Milliseconds of the floor, the prefill of the same prompts given only the kept tokens with no selection, and of prefill
    and selection under the plan: medians of three rounds in which they take turns, behind one that warms up.

    In front of the language model the floor is a prompt of that length; inside it, the same counts per layer, by taking the
    first tokens.
    """
    language = subject.anatomy.language
    assert language is not None
    _, tokens = _prefill(subject, batch, plan, seed)
    inside = [s for s in plan.stages if s.site == "prefill"]
    free = [
        replace(s, method=Free(), keep=Keep(tokens=round(tokens[language.layer(s.layer)]), per="prompt"))
        for s in inside
    ]
    if inside and len(inside) < len(plan.stages):
        free.append(Stage(Free(), Keep(tokens=round(tokens[0]), per="prompt"), "handoff"))
    floors, ours = [], []
    for _ in range(4):
        floors.append(
            _prefill(subject, batch, Plan(free), seed)[0].prefill
            if inside
            else _short(subject, batch, round(tokens[0]))
        )
        split, _ = _prefill(subject, batch, plan, seed)
        ours.append(split.prefill + split.selection)
    return 1000 * median(floors[1:]), 1000 * median(ours[1:])


def _prefill(subject: Subject, batch: Batch, plan: Plan, seed: int) -> tuple[Split, list[float]]:
    """Times, and the tokens that the plan leaves a prompt in front of each layer."""
    watch, sieve = Watchmaker(subject.anatomy), Sieve(subject.model, plan, seed)
    with watch.attached(), sieve, watch.watching(sieve) as split:
        subject.ask(batch.inputs, 1)
    assert sieve.last is not None
    return split, sieve.last.of_prompts(len(batch.samples))


@torch.no_grad()
def _short(subject: Subject, batch: Batch, tokens: int) -> float:
    language = subject.anatomy.language
    assert language is not None
    ids = batch.inputs["input_ids"]
    mask = batch.inputs.get("attention_mask", torch.ones_like(ids))
    visual = subject.visual(ids)
    text = int((mask.bool() & ~visual).sum(1).max())
    embed = subject.model.get_input_embeddings()(
        torch.zeros(len(ids), text + tokens, dtype=torch.long, device=ids.device)
    )
    short = torch.ones(embed.shape[:2], dtype=torch.long, device=ids.device)
    for row, n in enumerate((mask.bool() & ~visual).sum(1).tolist()):
        short[row, : text - n] = 0
    where = device(subject.model)
    began = now(where)
    language.root(inputs_embeds=embed, attention_mask=short, use_cache=True)
    return now(where) - began
