"""Budgets that speak of layers, turned into counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tokensieve.core.stage import Stage
from tokensieve.parts import budget
from tokensieve.parts.budget import Budget, Keep
from tokensieve.parts.budget.flops import of_layer
from tokensieve.sites.model.blocks import Stack
from tokensieve.sites.model.structure import Anatomy
from tokensieve.sites.visual.token_stream import Stream


def layered(stages: Sequence[Stage], language: Stack) -> dict[int, list[Stage]]:
    """The prefill stages of a plan, by the layer before which they run, from the first layer on.

    In a shallow model, stages at shares of the depth may meet at one layer: the last of a method then speaks for all.
    """
    out: dict[int, list[Stage]] = {}
    for stage in stages:
        if stage.site == "prefill":
            here = out.setdefault(language.layer(stage.layer), [])
            if here and isinstance(stage.layer, float) and here[-1].method == stage.method:
                here.pop()
            here.append(stage)
    return dict(sorted(out.items()))


def resolve(keep: Budget, index: int, anatomy: Anatomy, stream: Stream) -> Budget | Tensor:
    """A count or share for a stage in front of layer ``index``; ``(I,)`` counts where a budget over layers gives each image
    its own. Every image is taken to be alone with the text of its prompt."""
    if not isinstance(keep, Keep) or not keep.layered:
        return keep
    assert anatomy.language is not None
    depth, config = len(anatomy.language.layers), anatomy.language.config
    tokens, now = stream.images.mask.sum(1), stream.reduction.counts
    text = stream.text_lengths()
    before = torch.stack([*stream.layer_counts[:index], now])[:-1].T.tolist()
    each = zip(before, now.tolist(), tokens.tolist(), text.tolist(), strict=True)
    counts = [int(solve(keep, held, depth, n, all_, words, config)) for held, n, all_, words in each]  # type: ignore[arg-type]
    return torch.tensor(counts, device=tokens.device)


def solve(keep: Budget, before: Sequence[float], depth: int, now: int, tokens: int, text: int, config: Any) -> Budget:
    """``Keep(average=a)`` solves ``sum(before) + (depth - layer) * m = depth * a`` for m; ``Keep(flops=f)`` finds the
    largest m whose prefill costs at most the share f of the prefill with every token; ``Keep(last=l)`` is m = l. Other
    budgets are returned as they are. Where several stages reach one together, m is what the first of them keeps.

    Args:
        before: visual tokens in front of each layer before the stage; depth: layers of the language model.
        now: visual tokens in front of the stage; tokens: at the start; text: text tokens.

    Raises:
        ValueError: the budget is out of reach at this layer, with the least that is not.
    """
    if not isinstance(keep, Keep) or not keep.layered:
        return keep
    layer = len(before)
    if keep.last is not None:
        end = int(budget.of(keep.last, torch.tensor([tokens])))
        return max(1, round(now * (end / now) ** (1 / keep.steps)))
    if keep.average is not None:
        mean = keep.average * tokens if keep.average <= 1 else keep.average
        m = (mean * depth - sum(before)) / (depth - layer)
        if m < 1:
            least = (sum(before) + depth - layer) / depth
            raise ValueError(
                f"Keep(average={keep.average:g}) cannot be met from layer {layer} on; the least is {least:g} tokens"
            )
        return max(1, round(_first(m, now, keep.steps)))
    assert keep.flops is not None

    def cost(m: int) -> float:
        return sum(of_layer(config, text + n) for n in before) + (depth - layer) * of_layer(config, text + m)

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


def _first(mean: float, now: int, steps: int) -> float:
    """What the first of ``steps`` stages keeps, where each keeps the same share r of what it meets and all together
    keep ``mean`` on average: ``now * (r + r^2 + ... + r^steps) = steps * mean``."""
    if steps == 1 or mean >= now:
        return mean
    low, high = 0.0, 1.0
    for _ in range(50):
        r = (low + high) / 2
        low, high = (r, high) if now * sum(r**i for i in range(1, steps + 1)) < steps * mean else (low, r)
    # The stages behind it need one token each.
    return min(now * high, float(int(steps * mean - steps + 1)))
