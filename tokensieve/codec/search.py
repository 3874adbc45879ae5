"""Search: the nearest of many codes, in blocks, and k-means over it."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

BLOCK = (1 << 18, 1 << 22)
"""The fewest and the most products of tokens with codes alive at once (1 and 16 MB): a core's cache should hold them, and a block
be work enough for reading all codes again."""


def nearest(x: Tensor, codes: Tensor, active: Tensor | None = None, skip: Tensor | None = None) -> Tensor:
    """``(T,)`` int64: for each vector ``(T, D)`` the code of ``(K, D)`` at the least Euclidean distance, the first of equals.

    Args:
        active: ``(K,)`` bool, the codes that may be chosen; all if not given. One at least is.
        skip: ``(T,)`` a code for each vector that is not its own answer.
    """
    half = codes.square().sum(1) / -2
    if active is not None:
        half = half.masked_fill(~active, -torch.inf)
    turned = codes.T
    rows = max(16, min(max(x.shape[1] << 14, BLOCK[0]), BLOCK[1]) // len(codes))
    out = torch.empty(len(x), dtype=torch.int64, device=x.device)
    for at in range(0, len(x), rows):
        near = torch.addmm(half, x[at : at + rows], turned)
        if skip is not None:
            near.scatter_(1, skip[at : at + rows, None], -torch.inf)
        torch.argmax(near, 1, out=out[at : at + rows])
    return out


def sums(x: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """By label, how many vectors have it, ``(count,)``, and their sum, ``(count, D)``."""
    return (
        torch.bincount(labels, minlength=count).to(x.dtype),
        x.new_zeros(count, x.shape[1]).index_add_(0, labels, x),
    )


def drawn(x: Tensor, count: int, generator: Generator | None) -> Tensor:
    """``count`` different rows of ``x``, or all where it has fewer, in drawn order."""
    device = x.device if generator is None else generator.device
    order = torch.randperm(len(x), generator=generator, device=device)
    return x[order[:count].to(x.device)]


def kmeans(x: Tensor, count: int, generator: Generator | None = None, steps: int = 10, sphere: bool = False) -> Tensor:
    """Centres ``(at most count, D)`` of vectors ``(T, D)`` by Lloyd's algorithm, begun from drawn vectors.

    Equal vectors give one centre, so fewer come where ``x`` has fewer different ones. A centre that loses its last vector takes
    a drawn one.

    Args:
        sphere: whether centres are kept at length 1.
    """
    distinct = torch.unique(x, dim=0) if len(x) <= 4 * count else x
    if len(distinct) <= count:
        return distinct
    centres = drawn(distinct, count, generator)
    for _ in range(steps):
        size, total = sums(x, nearest(x, centres), len(centres))
        moved = total / size.clamp(min=1)[:, None]
        empty = size == 0
        moved[empty] = drawn(x, int(empty.sum()), generator)
        centres = torch.nn.functional.normalize(moved, dim=1) if sphere else moved
    return centres
