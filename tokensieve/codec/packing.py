"""Packing: the components of a code as one integer, and back; the first component counts least."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

MOST = 2**63
"""What an int64 holds, with 0."""


def check_indices(indices: Tensor, levels: Sequence[int]) -> None:
    """Refuse what is no index of these components.

    Raises:
        ValueError: another dtype than int64 or number of components, or an index that is neither -1 nor below its component's
            number of codes; it says which.
    """
    if indices.dtype != torch.int64 or indices.dim() < 1 or indices.shape[-1] != len(levels):
        raise ValueError(
            f"indices of dtype {indices.dtype} and shape {tuple(indices.shape)}; they must be int64 (..., {len(levels)}), "
            f"a component for each of levels={_short(levels)}"
        )
    if not indices.numel():
        return
    bound = torch.tensor(levels, device=indices.device)
    wrong = (indices < -1) | (indices >= bound) | ((indices < 0) != (indices[..., :1] < 0))
    if bool(wrong.any()):
        at = tuple(wrong.nonzero()[0].tolist())
        raise ValueError(
            f"indices{list(at)} is {int(indices[at])}; component {at[-1]} has codes 0 to {levels[at[-1]] - 1}, "
            "or -1 in all components where there is no token"
        )


def pack(indices: Tensor, levels: Sequence[int]) -> Tensor:
    """Indices ``(..., C)`` as one int64 each ``(...)``, -1 where there is no token.

    Raises:
        ValueError: the components have more combinations than an int64 can count, or an index is out of range.
    """
    step = _steps(levels, indices.device)
    check_indices(indices, levels)
    return torch.where(indices[..., 0] < 0, -1, (indices * step).sum(-1))


def unpack(flat: Tensor, levels: Sequence[int]) -> Tensor:
    """The reverse of :func:`pack`.

    Raises:
        ValueError: as there.
    """
    step = _steps(levels, flat.device)
    most = math.prod(levels)
    if flat.dtype != torch.int64:
        raise ValueError(f"packed indices of dtype {flat.dtype}; they must be int64")
    wrong = (flat < -1) | (flat > most - 1)
    if bool(wrong.any()):
        raise ValueError(
            f"a packed index is {int(flat[wrong][0])}; it must be 0 to {most - 1}, or -1 where there is no token"
        )
    parts = flat[..., None] // step % torch.tensor(levels, device=flat.device)
    return torch.where(flat[..., None] < 0, -1, parts)


def _steps(levels: Sequence[int], device: torch.device) -> Tensor:
    if math.prod(levels) > MOST:
        raise ValueError(
            f"levels={_short(levels)} have {math.log2(math.prod(levels)):.1f} bits; one int64 holds 63: keep the components apart"
        )
    return torch.tensor([math.prod(levels[:i]) for i in range(len(levels))], device=device)


def _short(levels: Sequence[int]) -> str:
    return str(tuple(levels)) if len(levels) < 17 else f"({', '.join(map(str, levels[:4]))}, ... {len(levels)} in all)"
