"""Budgets: how many tokens to keep, in declared units."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from numbers import Integral, Real

import torch
from torch import Tensor

UNITS = ("tokens", "share", "average", "flops", "last", "r")


@dataclass(frozen=True)
class Keep:
    """A budget in a declared unit; give exactly one of the first five, or ``r``.

    Args:
        tokens: tokens per unit.
        share: share of the valid tokens of the unit, in (0, 1].
        average: mean tokens over the language model's layers (sites that know layers turn it into a count); up to 1, that
            mean as a share of the image's tokens.
        flops: share of the full prefill FLOPs of the language model, in (0, 1] (likewise); at ``site="encoder"`` of the
            encoder's.
        last: what the last of several stages inside the language model leaves of an image: a number of tokens, or a share of
            all that it had (likewise).
        per: the unit, "image" or "prompt" (where several images share one budget).
        steps: with ``average`` and ``last``, how many stages inside the language model reach it together, this one and those
            behind it. Each is taken to keep the same share of what it meets and, for a mean, all to split the remaining layers
            evenly.
        r: at ``site="encoder"``, tokens that leave in each of its blocks (in the mean; see ``Stage.schedule``), of those that are
            there at most half.
        part: with ``tokens``, how much of them stays where they are fewer than all: for an early stage of a system that keeps
            fewer at first, and all where its whole budget is all.
    """

    tokens: int | None = None
    share: float | None = None
    average: float | None = None
    flops: float | None = None
    last: int | float | None = None
    per: str = "image"
    steps: int = 1
    part: float = 1.0
    r: int | None = None

    def __post_init__(self) -> None:
        given = [k for k in UNITS if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError(f"Keep needs exactly one of {', '.join(UNITS)}; got {given or 'none'}")
        if self.per not in ("image", "prompt"):
            raise ValueError(f"per={self.per!r}; it must be 'image' or 'prompt'")
        check(self.steps, "steps", whole=True)
        if self.steps > 1 and self.average is None and self.last is None:
            raise ValueError(
                f"steps={self.steps} goes with average=..., the mean that the stages reach together, or last=..., what is left "
                "behind them"
            )
        if check(self.part, "part", whole=False, most=1.0) != 1 and self.tokens is None:
            raise ValueError(f"part={self.part} goes with tokens=...")
        value = getattr(self, given[0])
        whole = None if given[0] == "last" else given[0] in ("tokens", "r")
        plain = check(value, given[0], whole=whole, most=1.0 if given[0] in ("share", "flops") else None)
        object.__setattr__(self, given[0], plain)

    @property
    def layered(self) -> bool:
        """Whether it speaks of a model's layers."""
        return self.tokens is None and self.share is None

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
        unit = next(k for k in UNITS if getattr(self, k) is not None)
        raise ValueError(
            f"Keep({unit}=...) speaks of a model's layers; on plain arrays pass keep=<tokens> or keep=<share>"
        )


Budget = int | float | Keep


def check(value: object, name: str = "keep", whole: bool | None = None, most: float | None = None) -> int | float:
    """A budget as a plain number, NumPy's included: an int of at least 1, or a float in (0, 1].

    Raises:
        ValueError: naming the argument, the value and the range.
    """
    span = "an int of at least 1 (tokens) or a float in (0, 1] (share)"
    if whole is True:
        span = "an int of at least 1"
    elif whole is False:
        span = "a number above 0" + ("" if most is None else f", at most {most:g}")
    if isinstance(value, bool) or not isinstance(value, Real) or math.isnan(value) or value <= 0:
        raise ValueError(f"{name}={value!r}; it must be {span}")
    plain = int(value) if isinstance(value, Integral) else float(value)
    share = whole is None and isinstance(plain, float)
    if (share and plain > 1) or (whole and isinstance(plain, float)) or (most is not None and plain > most):
        raise ValueError(f"{name}={value!r}; it must be {span}")
    return plain


def whole(keep: Budget) -> bool:
    """Whether a budget keeps every token, however many there are: a share of 1.0, not one token."""
    if isinstance(keep, Keep):
        return keep.share == 1.0 or keep.average == 1.0
    return isinstance(keep, float) and keep == 1.0


def times(keep: Budget, factor: float) -> Budget:
    """A budget of ``factor`` times as many tokens, for an early stage of a system that keeps ``keep`` on average.

    Raises:
        ValueError: the budget is a share of FLOPs, which does not say how many tokens it stands for.
    """
    if isinstance(keep, Keep):
        if keep.flops is not None or keep.last is not None:
            raise ValueError(
                f"{keep}; a system of several stages takes the mean over the layers, as tokens or as a share"
            )
        mean = keep.average
        more = times(keep.direct if mean is None else round(mean) if mean > 1 else mean, factor)
        if isinstance(more, Keep):
            return replace(more, per=keep.per)
        return Keep(**{"tokens" if isinstance(more, int) else "share": more}, per=keep.per)  # type: ignore[arg-type]
    keep = check(keep)
    if isinstance(keep, float):
        return 1.0 if keep == 1.0 else min(1.0, keep * factor)
    # How many tokens there are is not known yet: fewer than all of them are not fewer than a budget that is all.
    return _more(keep, factor) if factor >= 1 else Keep(tokens=keep, part=factor)


def mean(keep: Budget, steps: int = 1) -> Budget:
    """``keep`` as the mean over the language model's layers, reached by ``steps`` stages together; or as what the last of them
    leaves, where it says so."""
    per = "image"
    if isinstance(keep, Keep) and keep.last is not None:
        return replace(keep, steps=steps)
    if isinstance(keep, Keep):
        if keep.flops is not None:
            times(keep, 1)
        per, keep = keep.per, keep.average or keep.direct
    # A mean of one token leaves no choice, and as an average it would read as a share.
    return Keep(tokens=1, per=per) if keep == 1 and isinstance(keep, int) else Keep(average=keep, per=per, steps=steps)


def _more(keep: int, factor: float) -> int:
    return 1 if keep == 1 else int(keep * factor + 0.5)


def counts(keep: Budget | Tensor, valid: Tensor) -> Tensor:
    """``(B,)`` tokens to keep per row of ``valid`` (``(B, N)`` bool): at least 1, at most what the row holds.

    A share is rounded half up. A count larger than the row keeps the row whole. Counts of rows, ``(B,)``, are known already.
    """
    if isinstance(keep, Tensor):
        return keep.minimum(valid.sum(1))
    return of(keep, valid.sum(1))


def of(keep: Budget, n_valid: Tensor) -> Tensor:
    """As :func:`counts`, from the number of tokens of each row, ``(B,)``."""
    if isinstance(keep, Keep):
        kept = of(keep.direct, n_valid)
        return torch.where(kept < n_valid, torch.floor(kept.double() * keep.part + 0.5).long().clamp(min=1), kept)
    direct = check(keep)
    if isinstance(direct, int):
        return n_valid.clamp(max=direct)
    return torch.floor(n_valid.double() * direct + 0.5).long().clamp(min=1).minimum(n_valid)


def last(keep: Budget) -> Budget:
    """A number or share of tokens as what the last of several stages leaves; budgets over layers as they are."""
    if isinstance(keep, Keep):
        return keep if keep.layered else Keep(last=keep.direct, per=keep.per)
    return Keep(last=keep)
