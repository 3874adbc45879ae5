"""Cluster: agglomerative clustering of tokens to an exact number of clusters."""

from __future__ import annotations

import numpy as np
import torch
from scipy.cluster.hierarchy import linkage as merge_tree
from scipy.spatial.distance import squareform
from torch import Tensor
from torch.nn.functional import normalize

LINKAGES = ("single", "complete", "average")
EXACT = 4096
"""The largest number of tokens whose distances are held all at once (about 300 MB at the peak)."""


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
