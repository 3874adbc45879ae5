"""Budgets that speak of layers, turned into counts."""

from __future__ import annotations

from typing import Any

from tokensieve.parts.budget import Budget, Keep
from tokensieve.parts.flops import of_layer
from tokensieve.sites.anatomy import Anatomy
from tokensieve.sites.stream import Stream


def resolve(keep: Budget, layer: int, anatomy: Anatomy, stream: Stream) -> Budget:
    """A count or share for a stage at a layer; layers before it still hold what is in the stream now."""
    assert anatomy.language is not None
    tokens = stream.images.place.shape[1]
    now = int(stream.reduction.counts.max())
    depth = len(anatomy.language.layers)
    return solve(keep, layer, depth, now, tokens, stream.length - tokens, anatomy.language.config)


def solve(keep: Budget, layer: int, depth: int, now: int, tokens: int, text: int, config: Any) -> Budget:
    """``Keep(average=a)`` solves ``layer * now + (depth - layer) * m = depth * a`` for m; ``Keep(flops=f)`` finds the largest
    m whose prefill costs at most the share f of the prefill with every token. Other budgets are returned as they are.

    Args:
        layer: the layer before which tokens leave; depth: layers of the language model.
        now: visual tokens in front of the stage; tokens: at the start; text: text tokens.

    Raises:
        ValueError: the budget is out of reach at this layer, with the least that is not.
    """
    if not isinstance(keep, Keep) or (keep.average is None and keep.flops is None):
        return keep
    if keep.average is not None:
        mean = keep.average * tokens if keep.average <= 1 else keep.average
        m = (mean * depth - layer * now) / (depth - layer)
        if m < 1:
            least = (layer * now + depth - layer) / depth
            raise ValueError(
                f"Keep(average={keep.average:g}) cannot be met from layer {layer} on; the least is {least:g} tokens"
            )
        return max(1, round(m))
    assert keep.flops is not None

    def cost(m: int) -> float:
        return layer * of_layer(config, text + now) + (depth - layer) * of_layer(config, text + m)

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
