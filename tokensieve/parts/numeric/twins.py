"""Twins: tokens that are identical (blank patches, line ends), which must rank alike whatever a kernel makes of them.

A matrix product sums up the same numbers in another order at another place of the matrix, in another batch or under other
padding, and twins come out apart by rounding, which then would decide between them. So what is computed for the first of them
stands for all: their order is that of their places.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokensieve.core.noise import scrambled

LEAD = 16
"""Numbers of each token that are compared next to its first: where no two tokens share these, none are twins."""
BLOCK = 1 << 22
"""Numbers looked at at once."""


def firsts(x: Tensor, candidates: Tensor | None = None) -> Tensor | None:
    """``(B, N)`` long: the first candidate that is identical to each one, itself for what is no candidate.

    Args:
        x: ``(B, N, D)``; candidates: ``(B, N)`` bool, all by default.

    Returns:
        None where no two candidates are identical, which is found out at the cost of a few numbers per token.
    """
    if not _repeats(_lead(x)) or not _repeats(_key(x[..., :LEAD])):
        return None
    candidates = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if candidates is None else candidates
    place = torch.arange(x.shape[1], device=x.device).expand_as(candidates)
    first = torch.where(candidates, heads(_key(x), candidates), place)
    return None if bool((first == place).all()) else first


def heads(key: Tensor, candidates: Tensor) -> Tensor:
    """``(B, N)``: the first candidate with the same key (long); -1 for what is none."""
    sorted_, order = key.masked_fill(~candidates, torch.iinfo(key.dtype).max).sort(dim=1, stable=True)
    step = torch.arange(key.shape[1], device=key.device).expand_as(key)
    new = torch.ones_like(candidates)
    new[:, 1:] = sorted_[:, 1:] != sorted_[:, :-1]
    first = order.gather(1, torch.where(new, step, 0).cummax(1).values)
    return torch.where(candidates, torch.zeros_like(key).scatter_(1, order, first), -1)


def level(value: Tensor, first: Tensor | None, dim: int = 1) -> Tensor:
    """What was computed for each token, with that of its first twin in the place of its own. ``first``: as of :func:`firsts`.

    Args:
        value: ``(B, N)``, or with more dimensions, of which ``dim`` is that of tokens.
    """
    if first is None:
        return value
    shape = [1] * value.dim()
    shape[0], shape[dim] = first.shape
    return value.gather(dim, first.view(shape).expand_as(value))


def both(rows: Tensor, columns: Tensor) -> Tensor:
    """``(B, M, K)`` bool: which are twins, of tokens whose firsts are ``rows`` ``(B, M)`` and ``columns`` ``(B, K)``."""
    return rows[:, :, None] == columns[:, None]


def square(value: Tensor, first: Tensor | None, same: float) -> Tensor:
    """Values of pairs of tokens, ``(B, N, N)``, levelled on both sides; ``same`` between twins."""
    return value if first is None else level(level(value, first, 1), first, 2).masked_fill_(both(first, first), same)


def within(first: Tensor | None, place: Tensor) -> Tensor | None:
    """``(B, P)``: firsts of tokens taken at ``place`` ``(B, P)``, as positions among those."""
    if first is None:
        return None
    own = first.gather(1, place)
    return both(own, own).to(torch.uint8).argmax(2)


def _lead(x: Tensor) -> Tensor:
    """``(B, N)``: a number for each token that identical ones share: its first value; the bits of two where one has few."""
    first = x.detach()
    if x.dtype in (torch.float32, torch.float64) or x.shape[2] < 2:
        return first[..., 0]
    return (first[..., :2].float() + 0.0).contiguous().view(torch.int64)[..., 0]  # + 0.0: both zeros are one number


def _key(x: Tensor) -> Tensor:
    """``(B, N)`` long: equal for identical tokens, and for no others but by an unlikely chance."""
    size = x.shape[2]
    factor = scrambled(torch.arange(1, size + 1, device=x.device)) | 1
    parts = x.detach().split(max(BLOCK // max(len(x) * size, 1), 1), 1)
    return torch.cat([(_bits(part) * factor).sum(2) for part in parts], 1)


def _bits(x: Tensor) -> Tensor:
    whole = torch.int64 if x.dtype == torch.float64 else torch.int32
    x = x if x.dtype == torch.float64 else x.float()
    # Both zeros are one number.
    return (x + 0.0).contiguous().view(whole).long()


def _repeats(key: Tensor) -> bool:
    sorted_ = key.sort(dim=1).values
    return bool((sorted_[:, 1:] == sorted_[:, :-1]).any())
