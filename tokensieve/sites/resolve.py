"""Budgets that speak of layers, turned into counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokensieve.parts import budget
from tokensieve.parts.budget import Keep
from tokensieve.parts.flops import of_layer
from tokensieve.plan import Stage
from tokensieve.sites.anatomy import Anatomy, Stack
from tokensieve.sites.stream import Stream

Timeline = list[tuple[int, Stage]]
"""The stages of a language model in the order in which they run, each with the layer it stands in front of (0: the handoff)."""


def timeline(stages: Sequence[Stage], language: Stack) -> Timeline:
    """Raises ValueError where a layer does not exist."""
    found = [
        (language.layer(s.layer) if s.site == "prefill" else 0, s) for s in stages if s.site in ("handoff", "prefill")
    ]
    return sorted(found, key=lambda at: at[0])


def lead(stages: Timeline, stage: Stage, depth: int) -> float:
    """:func:`budget.lead` of a stage among those of its timeline that share a mean."""
    start = next(i for i, (_, s) in enumerate(stages) if s is stage)
    sharing = [
        (at, s.keep.weight) for at, s in stages[start:] if isinstance(s.keep, Keep) and s.keep.average is not None
    ]
    return budget.lead([w for _, w in sharing], [at for at, _ in sharing], depth) if sharing else 1.0


def resolve(stage: Stage, stages: Timeline, before: Sequence[float], anatomy: Anatomy, stream: Stream) -> budget.Budget:
    """A count or share for a stage in front of the layer that follows those which ran with ``before`` visual tokens."""
    assert anatomy.language is not None
    tokens = stream.images.place.shape[1]
    now = int(stream.reduction.counts.max())
    depth = len(anatomy.language.layers)
    ahead = lead(stages, stage, depth)
    return solve(stage.keep, ahead, before, depth, now, tokens, stream.length - tokens, anatomy.language.config)


def solve(
    keep: budget.Budget,
    ahead: float,
    before: Sequence[float],
    depth: int,
    now: int,
    tokens: int,
    text: int,
    config: Any,
) -> budget.Budget:
    """``Keep(average=a)`` solves ``sum(before) + (depth - layer) * m = depth * a`` for m and keeps ``ahead`` times as many;
    ``Keep(flops=f)`` finds the largest m whose prefill costs at most the share f of the prefill with every token. Other
    budgets are returned as they are.

    Args:
        ahead: see :func:`lead`.
        before: visual tokens in each of the layers in front of the stage; depth: layers of the language model.
        now: visual tokens in front of the stage; tokens: at the start; text: text tokens.

    Raises:
        ValueError: the budget is out of reach at this layer, with the least that is not.
    """
    if not isinstance(keep, Keep) or (keep.average is None and keep.flops is None):
        return keep
    layer, left = len(before), depth - len(before)
    if keep.average is not None:
        mean = keep.average * tokens if keep.average <= 1 else keep.average
        m = (mean * depth - sum(before)) / left
        if m < 1:
            least = (sum(before) + left) / depth
            raise ValueError(
                f"Keep(average={keep.average:g}) cannot be met from layer {layer} on; the least is {least:g} tokens"
            )
        return max(1, round(m * ahead))
    assert keep.flops is not None
    spent = sum(of_layer(config, text + n) for n in before)

    def cost(m: int) -> float:
        return spent + left * of_layer(config, text + m)

    whole = depth * of_layer(config, text + tokens)
    if cost(1) > keep.flops * whole:
        raise ValueError(
            f"Keep(flops={keep.flops:g}) cannot be met from layer {layer} on; the least is {cost(1) / whole:.3f}"
        )
    low, high = 1, now
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if cost(middle) <= keep.flops * whole else (low, middle - 1)
    return low
