"""Helpers: what the code of mutants calls. They note whether the change came to run, and whether it changed a value."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SEEN = {"ran": False, "differed": False}
"""Of the mutant that is alive."""


def reset() -> None:
    SEEN.update(ran=False, differed=False)


def everything(mask: Any) -> Any:
    """All of it, whatever the mask says."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        return mask
    return _noted(torch.ones_like(mask), mask)


def negative(score: Any) -> Any:
    """A score with the opposite sign; of several values, the first."""
    if isinstance(score, tuple):
        return (negative(score[0]), *score[1:])
    return _noted(-score if isinstance(score, Tensor) and score.dtype != torch.bool else score, score)


def swapped(other: Any, value: Any) -> Any:
    """A comparison the other way round, beside itself."""
    return _noted(other, value)


def late(x: Any, name: str, *args: Any, **more: Any) -> Any:
    """``x.name(...)``, an ordering or a choice along a dimension, where of equals the later comes first."""
    out = getattr(x, name)(*args, **more)
    if not isinstance(x, Tensor) or any(isinstance(a, Tensor) for a in args):
        return out
    dim = more.get("dim", -1 if name == "topk" else args[0]) % x.dim()
    other, last = getattr(x.flip(dim), name)(*args, **more), x.shape[dim] - 1
    if isinstance(out, Tensor):
        return _noted(last - other, out)
    _noted(last - other.indices, out.indices)
    return type(out)((other.values, last - other.indices))


def _noted(other: Any, value: Any) -> Any:
    SEEN["ran"] = True
    if not SEEN["differed"]:
        same = torch.equal(other, value) if isinstance(value, Tensor) and isinstance(other, Tensor) else other == value
        SEEN["differed"] = not same
    return other
