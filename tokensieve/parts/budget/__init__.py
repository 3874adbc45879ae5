"""Budgets: how many tokens to keep."""

from __future__ import annotations

import torch
from torch import Tensor

from tokensieve._moved import below
from tokensieve.core.budget import Budget, Keep, check, counts, last, mean, of, times, whole

__all__ = ["Budget", "Keep", "check", "counts", "last", "mean", "of", "times", "whole"]


def fraction_of(keep: Tensor, fraction: float) -> Tensor:
    """Part of each count, rounded half up, leaving at least one: ``(B,)`` -> ``(B,)``."""
    return torch.floor(keep.double() * fraction + 0.5).long().clamp(min=0).minimum(keep - 1)


def steps(n: int, keep: int, layers: int) -> list[int]:
    """Tokens after each of ``layers`` equal steps from n to keep (ToMe's constant r, the remainder spread evenly)."""
    return [n - round((n - keep) * (i + 1) / layers) for i in range(layers)]


def split(total: Tensor, parts: Tensor) -> Tensor:
    """``(B, G)``: each total split evenly over the groups that ``parts`` names (``(B, G)`` bool), the first ones
    taking one more."""
    number = parts.sum(1, keepdim=True).clamp(min=1)
    place = parts.long().cumsum(1) - 1
    return torch.where(parts, (total[:, None] + number - 1 - place).div(number, rounding_mode="floor"), 0)


def allot(total: Tensor, weight: Tensor, most: Tensor) -> Tensor:
    """Each total shared out over groups in proportion to their weights, exactly, and to none more than it can hold.

    What a full group cannot take goes to the others by weight; groups of no weight come last, by what they hold. Fractions
    are settled by largest remainder, ties in favour of the earlier group.

    Args:
        total: ``(B,)`` long; weight: ``(B, G)``, not negative; most: ``(B, G)`` long, what each group holds.

    Returns:
        ``(B, G)`` long, summing to the smaller of ``total`` and what all groups hold.
    """
    total = total.minimum(most.sum(1))
    weight, full = weight.double() * (most > 0), most == 0
    want = torch.zeros_like(weight)
    for _ in range(2 * most.shape[1]):
        rest = total - torch.where(full, most, 0).sum(1)
        open_ = torch.where(full, 0.0, weight)
        open_ = torch.where(open_.sum(1, keepdim=True) > 0, open_, torch.where(full, 0, most).double())
        want = rest[:, None] * open_ / open_.sum(1, keepdim=True).clamp(min=1e-300)
        over = (want >= most) & ~full
        if not bool(over.any()):
            break
        full = full | over
    want = torch.where(full, most.double(), want)
    # A count that is whole but for rounding is whole.
    base = torch.floor(want + 1e-9).long().minimum(most)
    missing = (total - base.sum(1))[:, None]
    order = (want - base).masked_fill(base >= most, -1.0).argsort(dim=1, descending=True, stable=True)
    more = torch.arange(most.shape[1], device=most.device) < missing
    return base + torch.zeros_like(base).scatter_(1, order, more.long())


def pyramid(keep: Tensor, n_valid: Tensor, min_kept: int, depth: int, beta: float) -> Tensor:
    """PyramidKV's budgets: beyond the protected tokens, layers keep linearly fewer from the first to the last.

    The last keeps ``1 / beta`` of the mean; where the first could not hold its part, both move towards the mean.

    Args:
        keep: ``(B,)``, the mean over the layers; n_valid: ``(B,)``.

    Returns:
        ``(B, depth)`` long, each row summing to ``depth * keep``.
    """
    base, room = (keep - min_kept).clamp(min=0), (n_valid - min_kept).clamp(min=0)
    last = base / beta
    first = (2 * base - last).minimum(room.to(last.dtype))
    last = 2 * base - first
    step = torch.linspace(0, 1, depth, device=keep.device)
    weight = first[:, None] + (last - first)[:, None] * step if depth > 1 else base[:, None].to(last.dtype)
    most = room[:, None].expand(-1, depth)
    return allot(base * depth, weight, most) + (keep - base)[:, None]


def concentrate(rows: Tensor, candidates: Tensor, keep: Tensor, left: int) -> Tensor:
    """FlowCut's count: the more concentrated attention is, and the fewer layers are left, the more tokens leave.

    Of n candidates leave ``(n - keep) / sqrt(left) * (1 - (H / log n)^2)``, H being the entropy of attention over them.

    Args:
        rows: ``(B, N)``, attention to each token; candidates: ``(B, N)`` bool; keep: ``(B,)``, the final count.
        left: layers that follow; 0 for the last, which ends at ``keep``.

    Returns:
        ``(B,)`` tokens that stay, at least ``keep``.
    """
    if left == 0:
        return keep
    n_valid = candidates.sum(1)
    probability = torch.where(candidates, rows, 0.0).double()
    probability = probability / probability.sum(1, keepdim=True).clamp(min=1e-300)
    flat = torch.special.entr(probability).sum(1) / n_valid.double().log().clamp(min=1e-12)
    gone = ((n_valid - keep) * left**-0.5 * (1 - flat.square())).round().long().clamp(min=0)
    return (n_valid - gone).maximum(keep)


def recycle(keep: Tensor, n_valid: Tensor, fraction: float, ratio: int) -> tuple[Tensor, Tensor]:
    """How SparseVLM spends a budget: tokens kept as they are, and pruned tokens clustered into the rest of it.

    Of m pruned tokens ``floor(fraction * m) + 1`` are recycled, r of them into ``r // ratio + 1`` clusters, and the
    number of tokens kept as they are is the largest for which kept and clusters fit the budget. At least half the
    budget is kept.

    Args:
        keep: ``(B,)`` budgets; n_valid: ``(B,)`` tokens of each row.

    Returns:
        kept ``(B,)`` and recycled ``(B,)``; ``keep - kept`` is the number of clusters.
    """
    kept = torch.arange(int(keep.max()) + 1, device=keep.device).expand(len(keep), -1)
    recycled = torch.floor(fraction * (n_valid[:, None] - kept).double()).long() + 1
    # Keeping one more token costs one or nothing, since it may save a cluster: the sums never fall along a row.
    fits = (kept + recycled // ratio + 1 <= keep[:, None]) & (kept <= n_valid[:, None])
    kept = (fits.sum(1) - 1).maximum((keep + 1) // 2)
    recycled = torch.floor(fraction * (n_valid - kept).double()).long() + 1
    return kept, recycled.maximum(keep - kept).minimum(n_valid - kept)


def spared(keep: Tensor, rank: Tensor, group: Tensor, groups: int) -> Tensor:
    """``(B,)``: how many of the first tokens stay as they are, if one more is spent on every group that loses others.

    The largest number that fits the budget, and at least half of it.

    Args:
        rank: ``(B, N)``, each token's place in the order of importance, -1 for none; group: ``(B, N)``, -1 for none.
        groups: the number of groups.
    """
    last = torch.full((len(keep), groups), -1, device=keep.device)
    last.scatter_reduce_(1, group.clamp(min=0), torch.where(group >= 0, rank, -1), "amax")
    # A group is open while its last token is not among the first d; d plus the open groups never falls as d grows.
    closed = torch.zeros(len(keep), rank.shape[1] + 1, dtype=torch.long, device=keep.device)
    closed.scatter_add_(1, last + 1, torch.ones_like(last))
    spent = torch.arange(closed.shape[1], device=keep.device) + groups - closed.cumsum(1)
    return ((spent <= keep[:, None]).sum(1) - 1).maximum((keep + 1) // 2).minimum(keep)


def rank(rows: Tensor, n_valid: Tensor, scale: float) -> Tensor:
    """SparseVLM's adaptive count: of n tokens leave ``floor(scale * (n - rank))``, by the rank of attention over them.

    Args:
        rows: ``(B, T, N)``, zero at padding; n_valid: ``(B,)`` tokens of each row.

    Returns:
        ``(B,)`` tokens that stay, at least 1.
    """
    # A fixed tolerance: the usual one grows with the padded shape.
    redundant = n_valid - torch.linalg.matrix_rank(rows, rtol=1e-5)
    return (n_valid - torch.floor(scale * redundant.double()).long()).clamp(min=1).minimum(n_valid)


__getattr__ = below(__name__)
