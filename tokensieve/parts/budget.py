"""Budgets: how many tokens to keep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Keep:
    """A budget in a declared unit; give exactly one of the first four.

    Args:
        tokens: tokens per unit.
        share: share of the valid tokens of the unit, in (0, 1].
        average: mean tokens over the language model's layers (sites that know layers turn it into a count); up to 1, that
            mean as a share of the image's tokens.
        flops: share of the full prefill FLOPs of the language model, in (0, 1] (likewise).
        weight: with ``average``, where several stages share one mean: they keep tokens in proportion to their weights.
        per: the unit, "image" or "prompt" (where several images share one budget).
    """

    tokens: int | None = None
    share: float | None = None
    average: float | None = None
    flops: float | None = None
    per: str = "image"
    weight: float = 1.0

    def __post_init__(self) -> None:
        given = [k for k in ("tokens", "share", "average", "flops") if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError(f"Keep needs exactly one of tokens, share, average, flops; got {given or 'none'}")
        if self.per not in ("image", "prompt"):
            raise ValueError(f"per={self.per!r}; it must be 'image' or 'prompt'")
        check(self.weight, "weight", whole=False)
        if self.weight != 1 and self.average is None:
            raise ValueError(f"weight={self.weight:g} goes with average=...; got {given[0]}")
        value = getattr(self, given[0])
        whole = given[0] == "tokens"
        check(value, given[0], whole=whole, most=None if given[0] in ("tokens", "average") else 1.0)

    @property
    def direct(self) -> int | float:
        """The count or share, where the budget is one.

        Raises:
            ValueError: the budget is in a unit that only a model can resolve.
        """
        if self.tokens is not None:
            return self.tokens
        if self.share is not None:
            return self.share
        unit = "average" if self.average is not None else "flops"
        raise ValueError(
            f"Keep({unit}=...) speaks of a model's layers; on plain arrays pass keep=<tokens> or keep=<share>"
        )


Budget = int | float | Keep


def mean(keep: Budget, weight: float = 1.0) -> Keep:
    """The budget of a system of several stages, tokens or a share as the mean over the layers, for one of its stages.

    Raises:
        ValueError: the budget is in FLOPs.
    """
    if not isinstance(keep, Keep):
        return Keep(average=keep, weight=weight)
    if keep.flops is not None:
        raise ValueError(
            "Keep(flops=...) cannot be shared out over several stages; pass tokens, a share or Keep(average=...)"
        )
    return Keep(average=keep.direct if keep.average is None else keep.average, per=keep.per, weight=weight)


def lead(weights: Sequence[float], layers: Sequence[int], depth: int) -> float:
    """How many times the count that would meet a mean if it stayed to the last layer the first of several stages keeps, where
    they share the mean by their weights.

    Args:
        weights, layers: of this stage and those behind it, in their order; depth: layers of the model.
    """
    spans = [end - start for start, end in zip(layers, [*layers[1:], depth], strict=True)]
    return weights[0] * (depth - layers[0]) / sum(w * span for w, span in zip(weights, spans, strict=True))


def check(value: object, name: str = "keep", whole: bool | None = None, most: float | None = None) -> None:
    """Refuse a budget outside its range: an int of at least 1, or a float in (0, 1].

    Raises:
        ValueError: naming the argument, the value and the range.
    """
    span = "an int of at least 1 (tokens) or a float in (0, 1] (share)"
    if whole is True:
        span = "an int of at least 1"
    elif whole is False:
        span = "a number above 0" + ("" if most is None else f", at most {most:g}")
    bad = isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value) or value <= 0
    if not bad and whole is None:
        bad = isinstance(value, float) and value > 1
    elif not bad:
        bad = (whole and not isinstance(value, int)) or (most is not None and value > most)  # type: ignore[operator]
    if bad:
        raise ValueError(f"{name}={value!r}; it must be {span}")


def counts(keep: Budget, valid: Tensor) -> Tensor:
    """``(B,)`` tokens to keep per row of ``valid`` (``(B, N)`` bool): at least 1, at most what the row holds.

    A share is rounded half up. A count larger than the row keeps the row whole.
    """
    direct = keep.direct if isinstance(keep, Keep) else keep
    check(direct)
    held = valid.sum(1)
    if isinstance(direct, int):
        return held.clamp(max=direct)
    return torch.floor(held.double() * direct + 0.5).long().clamp(min=1).minimum(held)


def share(keep: Tensor, fraction: float) -> Tensor:
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


def recycle(keep: Tensor, held: Tensor, fraction: float, ratio: int) -> tuple[Tensor, Tensor]:
    """How SparseVLM spends a budget: tokens kept as they are, and pruned tokens clustered into the rest of it.

    Of m pruned tokens ``floor(fraction * m) + 1`` are recycled, r of them into ``r // ratio + 1`` clusters, and the
    number of tokens kept as they are is the largest for which kept and clusters fit the budget. At least half the
    budget is kept.

    Args:
        keep: ``(B,)`` budgets; held: ``(B,)`` tokens of each row.

    Returns:
        kept ``(B,)`` and recycled ``(B,)``; ``keep - kept`` is the number of clusters.
    """
    kept = torch.arange(int(keep.max()) + 1, device=keep.device).expand(len(keep), -1)
    recycled = torch.floor(fraction * (held[:, None] - kept).double()).long() + 1
    # Keeping one more token costs one or nothing, since it may save a cluster: the sums never fall along a row.
    fits = (kept + recycled // ratio + 1 <= keep[:, None]) & (kept <= held[:, None])
    kept = (fits.sum(1) - 1).maximum((keep + 1) // 2)
    recycled = torch.floor(fraction * (held - kept).double()).long() + 1
    return kept, recycled.maximum(keep - kept).minimum(held - kept)


def knee(score: Tensor, valid: Tensor) -> Tensor:
    """``(B,)``: how many tokens score above the knee of the row's ranked scores, at least 1; all where there is no knee.

    The knee is the point of the curve (rank, score) that lies farthest from the line between its ends.
    """
    held = valid.sum(1, keepdim=True)
    ranked = score.double().masked_fill(~valid, -torch.inf).sort(dim=1, descending=True).values
    ranked = torch.where(torch.arange(score.shape[1], device=score.device) < held, ranked, 0.0)
    first, last = ranked[:, :1], ranked.gather(1, held - 1)
    place = torch.arange(score.shape[1], device=score.device).double()
    # Across the line and straight down differ by one factor for the whole row.
    off = (ranked - first - (last - first) * place / (held - 1).clamp(min=1)).abs() * (place < held)
    most, wide = off.amax(1, keepdim=True), first - last
    # The first of points that are equally far, but for rounding.
    at = (off >= most - 1e-9 * wide).to(torch.uint8).argmax(1, keepdim=True)
    above = ((ranked > ranked.gather(1, at)) & (place < held)).sum(1)
    return torch.where(most[:, 0] > 1e-6 * wide[:, 0], above.clamp(min=1), held[:, 0])


def rank(rows: Tensor, held: Tensor, scale: float) -> Tensor:
    """SparseVLM's adaptive count: of n tokens leave ``floor(scale * (n - rank))``, by the rank of attention over them.

    Args:
        rows: ``(B, T, N)``, zero at padding; held: ``(B,)`` tokens of each row.

    Returns:
        ``(B,)`` tokens that stay, at least 1.
    """
    # A fixed tolerance: the usual one grows with the padded shape.
    redundant = held - torch.linalg.matrix_rank(rows, rtol=1e-5)
    return (held - torch.floor(scale * redundant.double()).long()).clamp(min=1).minimum(held)
