"""Cluster: clustering of tokens to an exact number of clusters, bottom up or by k-means."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from tokensieve.parts.numeric import twins
from tokensieve.parts.select import compact, evenly, take, top

LINKAGES = ("single", "complete", "average", "ward")
BLOCK = 2048
EXACT = 4096
"""The largest number of tokens whose distances are held all at once (about 300 MB at the peak)."""


@torch.no_grad()
def agglomerative(metric: Tensor, count: Tensor, candidates: Tensor, linkage: str) -> tuple[Tensor, Tensor]:
    """Bottom-up clustering of the candidates by cosine distance, to exactly ``count[b]`` clusters.

    A cluster stands where its member nearest to its mean direction stands. Beyond ``EXACT`` tokens it works in two
    stages: contiguous pieces of at most that many tokens are clustered first, then the mean directions of their clusters.

    Args:
        metric: ``(B, N, d)``; candidates: ``(B, N)`` bool; linkage: one of ``LINKAGES``.

    Returns:
        the tokens at which clusters stand, ``(B, N)`` bool, and for each candidate the one of its cluster, ``(B,
        N)`` long, -1 elsewhere.
    """
    chosen, target = torch.zeros_like(candidates), torch.full(candidates.shape, -1, device=candidates.device)
    for row, (most, n_valid) in enumerate(zip(count.tolist(), candidates.sum(1).tolist(), strict=True)):
        place = candidates[row].nonzero()[:, 0]
        unit = normalize(metric[row, place].float(), dim=-1)
        label = clusters(unit, min(most, n_valid), linkage)
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
    like = (unit @ unit.T)[None]
    far = 1 - twins.square(like, twins.firsts(unit[None]), 1.0)[0].cpu().numpy()
    if linkage == "ward":
        # Ward's rule is one of Euclidean distances; those of unit vectors follow from their cosines.
        far = np.sqrt(2 * far.clip(min=0))
    from scipy.cluster.hierarchy import linkage as merge_tree
    from scipy.spatial.distance import squareform

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
    """The first member of each cluster that is nearest to its mean direction; two members are equally near, but for rounding."""
    near = (unit * _sums(unit, label)[label]).sum(1)
    size = int(label.max()) + 1
    best = near.new_full((size,), -torch.inf).scatter_reduce_(0, label, near, "amax")
    place = torch.arange(len(unit), device=unit.device)
    allowed = 1e-5 * label.bincount(minlength=size)  # of a sum of so many unit vectors
    first = torch.where(near >= (best - allowed)[label], place, len(unit))
    return place.new_full((size,), len(unit)).scatter_reduce_(0, label, first, "amin")


@torch.no_grad()
def means(
    x: Tensor, count: Tensor, candidates: Tensor, steps: int, weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """K-means of the candidates by Euclidean distance, into exactly ``count[b]`` clusters, by at most ``steps`` rounds.

    The first centres are candidates at equal steps along the row. A cluster that is left without tokens takes the one
    farthest from its centre, and a cluster stands where its member nearest to its centre stands. Time N count d steps;
    memory 2048 x count.

    Args:
        x: ``(B, N, d)``.
        weight: ``(B, N)``, what each counts in its centre; None: all the same.

    Returns:
        the tokens at which clusters stand, ``(B, N)`` bool, and for each candidate the one of its cluster, ``(B,
        N)`` long, -1 elsewhere.
    """
    counts = candidates.to(x.dtype) if weight is None else weight.to(x.dtype) * candidates
    place, valid = compact(evenly(count, candidates))
    centre = take(x, place)
    label, first = _assign(x, centre, valid, candidates)
    for _ in range(steps - 1):
        centre, before = _member_means(x, label, counts, centre), label
        label, first = _assign(x, centre, valid, candidates)
        if torch.equal(label, before):
            break
    n = x.shape[1]
    # Clusters that a row lacks stand in a column of their own, beyond the last token.
    chosen = candidates.new_zeros(len(x), n + 1).scatter_(1, first.masked_fill(~valid, n), True)[:, :n]
    return chosen, first.clamp(max=n - 1).gather(1, label).masked_fill_(~(candidates & (count > 0)[:, None]), -1)


def _member_means(x: Tensor, label: Tensor, weight: Tensor, centre: Tensor) -> Tensor:
    size = x.new_zeros(centre.shape[:2]).scatter_add_(1, label, weight)
    row = torch.arange(len(x), device=x.device)[:, None] * centre.shape[1]
    total = (
        torch.zeros_like(centre)
        .flatten(0, 1)
        .index_add_(0, (label + row).flatten(), (x * weight[..., None]).flatten(0, 1))
    )
    return total.view_as(centre) / size.clamp(min=1e-12)[..., None]


def _assign(x: Tensor, centre: Tensor, valid: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest centre of each token, ``(B, N)``, and the member nearest to each centre, ``(B, K)``; none is empty."""
    n = x.shape[1]
    lead, alike = twins.firsts(centre, valid), twins.firsts(x, candidates)
    open_ = valid if lead is None else valid & (lead == torch.arange(lead.shape[1], device=x.device))
    bias = (centre.square().sum(2) / -2).masked_fill(~open_, -torch.inf)[:, None]
    best = [torch.baddbmm(bias, rows, centre.transpose(1, 2)).max(2) for rows in x.split(BLOCK, 1)]
    label = twins.level(torch.cat([b.indices for b in best], 1), alike)
    # Squared distances, halved.
    square = x.square().sum(2) / 2
    far = twins.level(square - torch.cat([b.values for b in best], 1), alike).masked_fill_(~candidates, torch.inf)
    least = far.new_full(valid.shape, torch.inf).scatter_reduce_(1, label, far, "amin")
    place = torch.arange(n, device=x.device).expand_as(label)
    # Two members of a cluster are equally near to its mean, but for rounding.
    leads = torch.where(candidates & (far <= least.gather(1, label) + 1e-5 * square), place, n)
    first = label.new_full(valid.shape, n).scatter_reduce_(1, label, leads, "amin")
    empty = valid & (first == n)
    wanted = empty.sum(1)
    if int(wanted.max()) > 0:
        lead = candidates.new_zeros(len(x), n + 1).scatter_(1, first, True)[:, :n]
        moved = top(far, wanted, candidates & ~lead)
        into, _ = compact(empty)
        label = torch.where(moved, into.gather(1, (moved.long().cumsum(1) - 1).clamp(0, into.shape[1] - 1)), label)
        first = torch.where(empty, n, first).scatter_reduce_(1, label, torch.where(moved, place, n), "amin")
    return label, first
