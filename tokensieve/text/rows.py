"""Rows of an embedding for tokens that a model has none of: the ways to make them up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tokensieve.core.registry import Registry

MATCHED = 64
"""Shared tokens that a missing one is combined of at most; the paper's k."""
NEAREST = 8
LOCAL = 0.7
"""Neighbours in the donor space, and the share of the parts in a hybrid row."""
BLOCK = 512
"""Missing tokens that are solved at once."""


@dataclass(frozen=True)
class Gap:
    """Tokens that a model has no rows for, and what rows may be made of.

    Attributes:
        rows: (V, D) float32, the model's rows by old id.
        shared_old, shared_new: (S,) ids of tokens that old and new vocabulary share, in the same order.
        missing: (M,) new ids of the others.
        parts: for each of these the old ids that its text is encoded to; none where the old tokenizer makes nothing of it.
        donor: (W, E) float32, vectors of the new tokens by new id in any space in which likeness means likeness; None if none is
            given.
        seed: of what is random.
    """

    rows: Tensor
    shared_old: Tensor
    shared_new: Tensor
    missing: Tensor
    parts: tuple[tuple[int, ...], ...]
    donor: Tensor | None = None
    seed: int = 0

    @property
    def need_donor(self) -> Tensor:
        """The donor space.

        Raises:
            ValueError: none is given, or it is not of finite numbers.
        """
        if self.donor is None:
            raise ValueError("this initialisation needs a donor space: vectors of the new tokens; give --donor")
        if not bool(self.donor.isfinite().all()):
            bad = int((~self.donor.isfinite().all(-1)).sum())
            raise ValueError(f"the donor space has {bad} rows with NaN or infinity; give one of finite numbers")
        return self.donor


Init = Callable[[Gap], Tensor]
INITS: Registry[Init] = Registry("row initialisation")
"""Functions of a :class:`Gap` that give ``(M, D)`` float32 rows for its missing tokens."""


@INITS.register("mean", systems=[78])
def mean(gap: Gap) -> Tensor:
    """The mean of the old rows of the token's parts; the mean of all rows where it has no parts."""
    out = gap.rows.mean(0).expand(len(gap.missing), -1).clone()
    for i, parts in enumerate(gap.parts):
        if parts:
            out[i] = gap.rows[list(parts)].mean(0)
    return out


@INITS.register("zero")
def zero(gap: Gap) -> Tensor:
    """Zeros."""
    return gap.rows.new_zeros(len(gap.missing), gap.rows.shape[1])


@INITS.register("random")
def random(gap: Gap) -> Tensor:
    """Drawn from a normal distribution with the mean and the spread of the rows, dimension by dimension."""
    generator = torch.Generator().manual_seed(gap.seed)
    drawn = torch.randn(len(gap.missing), gap.rows.shape[1], generator=generator)
    return gap.rows.mean(0) + drawn * gap.rows.std(0)


@INITS.register("omp", systems=[246], donor=True)
def omp(gap: Gap) -> Tensor:
    """The combination of at most 64 shared tokens that orthogonal matching pursuit finds for it in the donor space, of their
    rows here (arXiv 2506.06607)."""
    donor = gap.need_donor
    _check_shared(gap)
    known, own = donor[gap.shared_new], gap.rows[gap.shared_old]
    k = min(MATCHED, len(known), donor.shape[1])
    out = []
    for block in gap.missing.split(BLOCK):
        chosen, weights = pursuit(donor[block], known, k)
        out.append(torch.einsum("mk,mkd->md", weights, own[chosen]))
    return torch.cat(out) if out else gap.rows.new_zeros(0, gap.rows.shape[1])


@INITS.register("hybrid", systems=[78], donor=True)
def hybrid(gap: Gap) -> Tensor:
    """Seven tenths of its parts' rows, three tenths of its eight nearest shared tokens' in the donor space, by softmax of their
    cosines at temperature 0.3 (TokenAdapt, arXiv 2505.09738).

    Parts are weighted evenly here: the donor space holds the new tokens only.
    """
    donor = torch.nn.functional.normalize(gap.need_donor, dim=-1)
    _check_shared(gap)
    known, own = donor[gap.shared_new], gap.rows[gap.shared_old]
    near = []
    for block in gap.missing.split(BLOCK):
        cosine, chosen = (donor[block] @ known.T).topk(min(NEAREST, len(known)))
        near.append(torch.einsum("mk,mkd->md", (cosine / 0.3).softmax(-1), own[chosen]))
    return LOCAL * mean(gap) + (1 - LOCAL) * torch.cat(near) if near else mean(gap)


def _check_shared(gap: Gap) -> None:
    if not len(gap.shared_new):
        raise ValueError("the two vocabularies share no token, so that nothing can be combined; take init='mean'")


def pursuit(targets: Tensor, atoms: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Orthogonal matching pursuit of many targets at once.

    Each step takes the atom (of length 1) that the residual is most like, and fits all taken ones anew by least squares.

    Args:
        targets: (M, E); atoms: (S, E), S at least k; k: atoms for each target, at most E.

    Returns:
        ``(M, k)`` indices of atoms and ``(M, k)`` weights; where nothing is left to explain, weights are 0.
    """
    length = atoms.norm(dim=-1, keepdim=True)
    unit = torch.where(length > 0, atoms / length.clamp_min(1e-12), torch.zeros_like(atoms))
    count, width = targets.shape
    residual = targets.clone()
    basis = targets.new_zeros(count, k, width)  # orthonormal, spans what was taken
    upper = torch.eye(k).expand(count, k, k).clone()  # atom j = sum_i upper[i, j] basis i
    seen = targets.new_zeros(count, k)
    chosen = torch.zeros(count, k, dtype=torch.long)
    rows = torch.arange(count)
    taken = torch.zeros(count, len(unit), dtype=torch.bool)
    for j in range(k):
        score = (residual @ unit.T).abs().masked_fill(taken, -1.0)
        best = score.argmax(-1)
        chosen[:, j], taken[rows, best] = best, True
        atom = unit[best]
        along = torch.einsum("mke,me->mk", basis[:, :j], atom)
        rest = atom - torch.einsum("mk,mke->me", along, basis[:, :j])
        size = rest.norm(dim=-1)
        fresh = size > 1e-5  # an atom within the span of those taken adds nothing
        basis[:, j] = torch.where(fresh[:, None], rest / size.clamp_min(1e-12)[:, None], torch.zeros_like(rest))
        upper[:, :j, j], upper[:, j, j] = along, torch.where(fresh, size, torch.ones_like(size))
        seen[:, j] = (basis[:, j] * residual).sum(-1)
        residual = residual - seen[:, j, None] * basis[:, j]
    weights = torch.linalg.solve_triangular(upper, seen[..., None], upper=True)[..., 0]
    return chosen, weights / length[chosen][..., 0].clamp_min(1e-12)
