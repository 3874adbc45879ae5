"""Sparse VideoGen2: attention between clusters of queries and of keys, of which each cluster of queries sees the heaviest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sparse:
    """Attention and what of it was computed.

    Attributes:
        output: ``(B, H, N, d)``.
        density: the share of query-key pairs that were computed.
        covered: the share of attention's mass, as the centroids estimate it, that they hold: the least of any cluster.
    """

    output: Tensor
    density: float
    covered: float


def attention(
    query: Tensor, key: Tensor, value: Tensor, clusters: tuple[int, int], *, top_p: float | None = None,
    density: float | None = None, by_place: bool = False, rounds: int = 8,
) -> Sparse:  # fmt: skip
    """Softmax attention over pairs of clusters.

    Queries and keys are clustered by k-means, each head by itself; a pair of clusters weighs the exponential of its centroids'
    product times the number of keys; each cluster of queries sees the heaviest ones until ``top_p`` of its mass is covered, or
    until ``density`` of all keys would be passed. Tokens of a cluster lie together for the products, and go back to their
    places.

    Source: arXiv 2505.18875. Deviations: k-means starts with tokens at equal steps instead of the clusters of the step before; no
    kernel computes blocks of different sizes here, so that pairs count and not time.

    Args:
        query, key, value: ``(B, H, N, d)``.
        clusters: of queries, and of keys.
        by_place: runs of neighbouring tokens in the place of clusters, which is what it is to be better than.

    Raises:
        ValueError: not exactly one of ``top_p`` and ``density``, or one outside (0, 1].
    """
    asked = top_p if density is None else density
    if (top_p is None) == (density is None) or asked is None or not 0 < asked <= 1:
        raise ValueError(f"top_p={top_p}, density={density}; give one of them, in (0, 1]")
    scale, n = query.shape[-1] ** -0.5, key.shape[2]
    of_q, of_k = (
        _runs(x, count) if by_place else _kmeans(x, count, rounds)
        for x, count in zip((query, key), clusters, strict=True)
    )
    near, size_q = _means(query, of_q, clusters[0])
    far, size_k = _means(key, of_k, clusters[1])
    weight = ((near @ far.transpose(2, 3)) * scale).masked_fill(size_k[:, :, None] == 0, -torch.inf)
    mass = (weight + size_k[:, :, None].clamp(min=1).log()).softmax(-1)
    order = mass.argsort(dim=-1, descending=True, stable=True)
    ranked = mass.gather(-1, order)
    if top_p is not None:
        seen = ranked.cumsum(-1) - ranked < top_p
        if top_p == 1:
            seen = torch.ones_like(seen)
    else:
        held = size_k[:, :, None].expand_as(mass).gather(-1, order).cumsum(-1)
        seen = held <= density * n  # type: ignore[operator]
        seen[..., 0] = True  # attention needs a key
    chosen = torch.zeros_like(seen).scatter_(-1, order, seen)
    there = size_q > 0
    covered = (mass * chosen).sum(-1)[there].min()
    pairs = (size_q[..., None] * size_k[:, :, None] * chosen).sum() / (
        query.shape[0] * query.shape[1] * query.shape[2] * n
    )
    return Sparse(_attend(query, key, value, of_q, of_k, chosen, scale), float(pairs), float(covered))


def _attend(
    query: Tensor, key: Tensor, value: Tensor, of_q: Tensor, of_k: Tensor, chosen: Tensor, scale: float
) -> Tensor:
    """Cluster by cluster of queries, with the keys that it sees: no mask of all pairs is made."""
    out = value.new_zeros(*query.shape[:3], value.shape[-1])
    for b in range(query.shape[0]):
        for h in range(query.shape[1]):
            for cluster in of_q[b, h].unique().tolist():
                rows = (of_q[b, h] == cluster).nonzero()[:, 0]
                keys = chosen[b, h, cluster][of_k[b, h]].nonzero()[:, 0]
                attended = (query[b, h, rows] @ key[b, h, keys].T * scale).softmax(-1)
                out[b, h, rows] = attended @ value[b, h, keys]
    return out


def _kmeans(x: Tensor, count: int, rounds: int) -> Tensor:
    """``(B, H, N)``: the cluster of each token; ties to the lower one, an empty cluster stays where it is."""
    at = torch.linspace(0, x.shape[2] - 1, count, device=x.device).round().long()
    centres = x[:, :, at]
    for _ in range(rounds):
        found = (x @ centres.transpose(2, 3) - centres.square().sum(-1)[:, :, None] / 2).argmax(-1)
        means, size = _means(x, found, count)
        centres = torch.where(size[..., None] > 0, means, centres)
    return (x @ centres.transpose(2, 3) - centres.square().sum(-1)[:, :, None] / 2).argmax(-1)


def _runs(x: Tensor, count: int) -> Tensor:
    return (torch.arange(x.shape[2], device=x.device) * count // x.shape[2]).expand(*x.shape[:2], -1)


def _means(x: Tensor, found: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Centroids ``(B, H, C, d)`` and sizes ``(B, H, C)``."""
    size = x.new_zeros(*x.shape[:2], count).scatter_add_(2, found, torch.ones_like(x[..., 0]))
    total = x.new_zeros(*x.shape[:2], count, x.shape[-1]).scatter_add_(2, found[..., None].expand_as(x), x)
    return total / size.clamp(min=1)[..., None], size
