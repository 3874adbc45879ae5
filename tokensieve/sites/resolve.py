"""Budgets that speak of layers, turned into counts."""

from __future__ import annotations

from tokensieve.parts.budget import Budget, Keep
from tokensieve.sites.anatomy import Anatomy
from tokensieve.sites.stream import Stream


def resolve(keep: Budget, layer: int, anatomy: Anatomy, stream: Stream) -> Budget:
    """A count or share for a stage at a layer; layers before it still hold what is in the stream now.

    ``Keep(average=a)`` solves ``layer * n + (depth - layer) * m = depth * a`` for m; ``Keep(flops=f)`` finds the largest m whose prefill
    costs at most the share f of the prefill with every token.

    Raises:
        ValueError: the budget is out of reach at this layer, with the least that is not.
    """
    if not isinstance(keep, Keep) or (keep.average is None and keep.flops is None):
        return keep
    assert anatomy.language is not None
    depth = len(anatomy.language.layers)
    n = int(stream.reduction.counts.max())
    if keep.average is not None:
        m = (keep.average * depth - layer * n) / (depth - layer)
        if m < 1:
            least = (layer * n + depth - layer) / depth
            raise ValueError(f"Keep(average={keep.average:g}) cannot be met from layer {layer} on; the least is {least:g}")
        return max(1, round(m))
    from tokensieve.parts.flops import of_layer

    config = anatomy.language.config
    text = stream.length - n

    def cost(m: int) -> float:
        return layer * of_layer(config, text + n) + (depth - layer) * of_layer(config, text + m)

    assert keep.flops is not None
    aim = keep.flops * depth * of_layer(config, text + stream.images.place.shape[1])
    if cost(1) > aim:
        raise ValueError(f"Keep(flops={keep.flops:g}) cannot be met from layer {layer} on; the least is {cost(1) / aim * keep.flops:.3f}")
    low, high = 1, n
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if cost(middle) <= aim else (low, middle - 1)
    return low
