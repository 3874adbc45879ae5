"""What reductions of the same tokens have in common: overlap of what they keep, agreement of clusters, radial masks.

Source: Which Tokens to Use? Investigating Token Reduction in Vision Transformers, arXiv 2308.04657.
"""

from __future__ import annotations

import torch
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor

from tokensieve.core.reduction import Reduction

RADIAL = {"manhattan": 1.0, "euclidean": 2.0, "chebyshev": torch.inf}
"""Norms of the distance from the middle."""


def radial(side: int, norm: float) -> Tensor:
    """``(side * side,)``: how near each place of a square grid is to its middle, the nearest highest."""
    place = torch.arange(side, dtype=torch.float32) - (side - 1) / 2
    return -torch.linalg.vector_norm(torch.cartesian_prod(place, place), ord=norm, dim=1)


def kept(reduction: Reduction) -> Tensor:
    """``(B, N)`` bool: the tokens whose places are left."""
    return torch.zeros(reduction.batch, reduction.n, dtype=torch.bool).scatter_(1, reduction.kept, True)


def overlap(a: Tensor, b: Tensor) -> float:
    """Intersection over union of what is kept, ``(B, N)`` bool, in the mean over rows."""
    return float(((a & b).sum(1) / (a | b).sum(1)).mean())


def agreement(a: Reduction, b: Reduction) -> float:
    """Normalised mutual information of the clusters of two reductions, in the mean over rows."""
    rows = zip(a.owner.tolist(), b.owner.tolist(), strict=True)
    made = [float(normalized_mutual_info_score(x, y)) for x, y in rows]
    return sum(made) / len(made)
