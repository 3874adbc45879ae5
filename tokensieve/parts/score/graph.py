"""Graph: tokens as nodes, and how importance flows along weighted edges."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tokensieve.parts.numeric import similarity, twins

Flow = Callable[[Tensor], Tensor]
"""One step: from what each node holds, ``(B, N)``, to what each then receives, ``(B, N)``."""


@torch.no_grad()
def similar(unit: Tensor, candidates: Tensor, group: Tensor, least: float, temperature: float) -> tuple[Flow, Tensor]:
    """The graph of similar tokens: edges where the cosine is at least ``least``, weighted by a softmax along each row.

    Edges stay within a group (``group``: ``(B, N)`` long) and among the candidates. Time N^2 d / 2; memory N x N, or
    512 x N beyond ``similarity.HELD``.

    Returns:
        the flow along the edges, and the number of edges of each node, ``(B, N)``, itself included, at least 1.
    """
    like, first = similarity.dots(unit), twins.firsts(unit, candidates)

    def edges(place: Tensor) -> tuple[Tensor, Tensor]:
        near = like(place)
        far = (near < least) | ~candidates[:, None] | (group.gather(1, place)[..., None] != group[:, None])
        return (near / temperature).masked_fill_(far, -torch.inf).softmax(2).nan_to_num_(0.0), (~far).sum(2)

    places, stored, degree = similarity.blocks(candidates), [], []
    for place in places:
        weight, edged = edges(place)
        degree.append(edged)
        if len(candidates) * candidates.shape[1] ** 2 <= similarity.HELD:
            stored.append(weight)

    def flow(x: Tensor) -> Tensor:
        weights = stored or (edges(place)[0] for place in places)
        parts = zip(x.split(similarity.ROWS, 1), weights, strict=True)
        return twins.level(torch.stack([(part[:, None] @ weight)[:, 0] for part, weight in parts]).sum(0), first)

    return flow, torch.cat(degree, 1).clamp(min=1)
