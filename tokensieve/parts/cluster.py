"""Cluster: clustering of tokens to an exact number of clusters."""

from __future__ import annotations

import numpy as np
import torch
from scipy.cluster.hierarchy import linkage as merge_tree
from scipy.spatial.distance import squareform
from torch import Tensor
from torch.nn.functional import normalize

from tokensieve.parts import merge

LINKAGES = ("single", "complete", "average")
EXACT = 4096
"""The largest number of tokens whose distances are held all at once (about 300 MB at the peak)."""

TIE = 1e-5
"""Cosines closer than this count as equal."""


@torch.no_grad()
def agglomerative(metric: Tensor, count: Tensor, among: Tensor, linkage: str) -> tuple[Tensor, Tensor]:
    """Bottom-up clustering of the candidates by cosine distance, to exactly ``count[b]`` clusters.

    A cluster stands where its member nearest to its mean direction stands. Beyond ``EXACT`` tokens it works in two
    stages: contiguous pieces of at most that many tokens are clustered first, then the mean directions of their clusters.

    Args:
        metric: ``(B, N, d)``; among: ``(B, N)`` bool; linkage: one of ``LINKAGES``.

    Returns:
        the tokens at which clusters stand, ``(B, N)`` bool, and for each candidate the one of its cluster, ``(B,
        N)`` long, -1 elsewhere.
    """
    chosen, target = torch.zeros_like(among), torch.full(among.shape, -1, device=among.device)
    for row, (most, held) in enumerate(zip(count.tolist(), among.sum(1).tolist(), strict=True)):
        place = among[row].nonzero()[:, 0]
        unit = normalize(metric[row, place].float(), dim=-1)
        label = clusters(unit, min(most, held), linkage)
        centre = place[_centres(unit, label)]
        chosen[row, centre] = True
        target[row, place] = centre[label]
    return chosen, target


def clusters(unit: Tensor, count: int, linkage: str) -> Tensor:
    """``(n,)`` long: the cluster of each of n unit vectors ``(n, d)``; exactly ``count`` clusters, ties or not."""
    n = len(unit)
    if n <= EXACT:
        return _cut(unit, count, linkage)
    # Pieces share the clusters of the first stage evenly, so that no piece is asked for more than it holds.
    pieces = unit.tensor_split(-(-n // EXACT))
    first = max(count, EXACT)
    ends = torch.tensor([len(p) for p in pieces]).cumsum(0) * first // n
    shares = ends.diff(prepend=torch.zeros(1, dtype=torch.long)).tolist()
    labels, seen = [], 0
    for piece, share in zip(pieces, shares, strict=True):
        labels.append(_cut(piece, share, linkage) + seen)
        seen += share
    label = torch.cat(labels)
    return label if first == count else _cut(normalize(_sums(unit, label), dim=-1), count, linkage)[label]


def _cut(unit: Tensor, count: int, linkage: str) -> Tensor:
    n = len(unit)
    if count >= n:
        return torch.arange(n, device=unit.device)
    far = 1 - (unit @ unit.T).cpu().numpy()
    # Condensed: a square matrix would be read as n points with n coordinates.
    tree = merge_tree(squareform(far, checks=False), linkage)
    # The first n - count merges of the tree, not a threshold on its heights: ties cannot miss the count.
    joined = tree[: n - count, :2].astype(np.int64)
    parent = np.arange(2 * n)
    parent[joined] = n + np.arange(n - count)[:, None]
    while (parent != parent[parent]).any():
        parent = parent[parent]
    return torch.from_numpy(np.unique(parent[:n], return_inverse=True)[1]).to(unit.device)


@torch.no_grad()
def kmeans(metric: Tensor, start: Tensor, among: Tensor, rounds: int = 10) -> tuple[Tensor, Tensor]:
    """K-means by cosine among the candidates, from the clusters' first places ``start`` (``(B, N)`` bool) on.

    In each round a cluster moves to its member nearest to its mean direction, so that no cluster can run empty. Time
    rounds x N x clusters x d.

    Args:
        metric: ``(B, N, d)``; among: ``(B, N)`` bool, holding ``start``.

    Returns:
        the tokens at which clusters stand, ``(B, N)`` bool, as many as started, and for each candidate the one of its
        cluster, ``(B, N)`` long, -1 elsewhere.
    """
    unit = normalize(metric.float(), dim=-1)
    place = torch.arange(unit.shape[1], device=unit.device).expand_as(among)
    centres = start
    for _ in range(rounds):
        target = _nearest(unit, centres, among, place)
        at = target.clamp(min=0)
        member = (target >= 0)[..., None] * unit
        sums = torch.zeros_like(unit).scatter_add_(1, at[..., None].expand_as(unit), member)
        mean = normalize(sums, dim=-1).gather(1, at[..., None].expand_as(unit))
        near = (unit * mean).sum(2).masked_fill(target < 0, -torch.inf)
        best = torch.full_like(near, -torch.inf).scatter_reduce_(1, at, near, "amax").gather(1, at)
        # Two members are equally near to their mean, but for rounding.
        first = torch.where((near >= best - TIE) & (target >= 0), place, unit.shape[1])
        moved = torch.full_like(first, unit.shape[1]).scatter_reduce_(1, at, first, "amin").gather(1, at)
        new = (moved == place) & (target >= 0)
        if torch.equal(new, centres):
            break
        centres = new
    return centres, _nearest(unit, centres, among, place)


def _nearest(unit: Tensor, centres: Tensor, among: Tensor, place: Tensor) -> Tensor:
    """For each candidate the nearest centre; for a centre itself, even where another is just like it."""
    target, _ = merge.nearest(unit, centres)
    return torch.where(centres, place, target).masked_fill(~among, -1)


def _sums(unit: Tensor, label: Tensor) -> Tensor:
    return unit.new_zeros(int(label.max()) + 1, unit.shape[1]).index_add_(0, label, unit)


def _centres(unit: Tensor, label: Tensor) -> Tensor:
    """The first member of each cluster that is nearest to its mean direction."""
    near = (unit * _sums(unit, label)[label]).sum(1)
    size = int(label.max()) + 1
    best = near.new_full((size,), -torch.inf).scatter_reduce_(0, label, near, "amax")
    place = torch.arange(len(unit), device=unit.device)
    first = torch.where(near == best[label], place, len(unit))
    return place.new_full((size,), len(unit)).scatter_reduce_(0, label, first, "amin")
