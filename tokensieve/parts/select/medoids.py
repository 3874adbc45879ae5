"""Medoids: clustering around tokens that exist, deterministic, many sets of tokens at once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tokensieve.parts.numeric import twins
from tokensieve.parts.select import take

ROUNDS = 60
EQUAL = 1e-5
"""Share of their squared norms below which the squared distance of two tokens is rounding."""


def distances(x: Tensor) -> Tensor:
    """``(G, P, P)`` Euclidean distances within each set, exactly zero between equals, from ``(G, P, D)``."""
    norm = x.square().sum(2)
    both = norm[:, None] + norm[..., None]
    square = twins.square(torch.baddbmm(both, x, x.transpose(1, 2), alpha=-2), twins.firsts(x), 0.0)
    return square.where(square > EQUAL * both, 0.0).sqrt()


@torch.no_grad()
def kmedoids(far: Tensor, first: Tensor, count: Tensor, valid: Tensor) -> Tensor:
    """The medoids of exactly ``count[g]`` clusters of each set, ``(G, P)`` bool.

    It starts with ``first`` and goes on with the token farthest from all chosen before (KKZ); then tokens join their
    nearest medoid, and every cluster takes the member of the smallest summed distance as its new one, until nothing
    changes. Ties go to the earlier token.

    Args:
        far: ``(G, P, P)`` distances; first: ``(G,)``; count: ``(G,)``, from 1 to the valid tokens; valid: ``(G, P)``.
    """
    # Both ends of a pair see one value: the two members of a pair tie. And a token is nearer to itself than to its equal,
    # so that no cluster runs empty.
    far = far.minimum(far.transpose(1, 2))
    far.diagonal(dim1=1, dim2=2).fill_(-1.0)
    medoid, used = _spread(far, first, count, valid)
    for _ in range(ROUNDS):
        away = take(far, medoid).masked_fill(~used[..., None], torch.inf)
        cluster = torch.where(valid, away.argmin(1), -1)
        together = (cluster[:, :, None] == cluster[:, None]) & valid[:, None]
        # Exact sums: members that are equally central tie.
        cost = torch.where(together, far, 0.0).sum(2, dtype=torch.float64)
        moved = torch.where(used, _first_least(cost, cluster, medoid.shape[1]), medoid)
        if torch.equal(moved, medoid):
            break
        medoid = moved
    return torch.zeros_like(valid).scatter_(1, torch.where(used, medoid, medoid[:, :1]), True)


def embed(x: Tensor, count: Tensor, valid: Tensor, sigma: float) -> Tensor:
    """The spectral embedding of each set, ``(G, P, K)``: rows of the ``count[g]`` lowest eigenvectors of its graph.

    The graph joins all tokens with weight exp(-d^2 / (2 sigma^2)), distances d being measured in units of the set's
    root mean square distance; its Laplacian is normalised, rows of the embedding are of unit length. Twins are one node of
    their common weight: eigenvectors that tell them apart would be any basis of one space.
    """
    first = twins.firsts(x, valid)
    own = torch.arange(x.shape[1], device=x.device)
    lead = valid if first is None else valid & (first == own)
    number = torch.ones_like(x[..., 0])
    if first is not None:
        number = torch.zeros_like(number).scatter_add_(1, first, valid.to(x.dtype)).clamp(min=1)
    square = distances(x).square() * valid[:, None] * valid[..., None]
    pairs = (valid.sum(1) * (valid.sum(1) - 1)).clamp(min=1)[:, None, None]
    unit = (square.sum((1, 2), keepdim=True) / pairs).clamp(min=1e-12)
    weight = torch.exp(-square / (2 * sigma**2 * unit)) * valid[:, None] * valid[..., None]
    scale = weight.sum(2).clamp(min=1e-12).rsqrt()
    scale = scale * number.sqrt() * lead
    laplacian = -weight * scale[:, None] * scale[..., None]
    # Eigenvalues of the graph are at most 2: those of padding come last.
    laplacian.diagonal(dim1=1, dim2=2).add_(torch.where(lead, 1.0, 3.0))
    low = torch.linalg.eigh(laplacian.double()).eigenvectors[..., : int(count.max())].to(x.dtype)
    inside = torch.arange(low.shape[2], device=x.device) < count[:, None]
    return twins.level(normalize(low * inside[:, None], dim=2), first)


def _spread(far: Tensor, first: Tensor, count: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    picks, near = [first], take(far, first[:, None])[:, 0].masked_fill(~valid, -torch.inf)
    for _ in range(1, int(count.max())):
        near = near.scatter(1, picks[-1][:, None], -torch.inf)
        picks.append(near.argmax(1))
        near = near.minimum(take(far, picks[-1][:, None])[:, 0])
    medoid = torch.stack(picks, 1)
    return medoid, torch.arange(medoid.shape[1], device=far.device) < count[:, None]


def _first_least(cost: Tensor, cluster: Tensor, clusters: int) -> Tensor:
    """``(G, K)``: the first member of the lowest cost in each cluster, 0 where it has none."""
    group = torch.where(cluster < 0, clusters, cluster)
    least = cost.new_full((len(cost), clusters + 1), torch.inf).scatter_reduce(1, group, cost, "amin")
    step = torch.arange(cost.shape[1], device=cost.device).expand_as(group)
    place = torch.where(cost == least.gather(1, group), step, cost.shape[1])
    out = group.new_full((len(cost), clusters + 1), cost.shape[1]).scatter_reduce(1, group, place, "amin")
    return torch.where(out < cost.shape[1], out, 0)[:, :clusters]
