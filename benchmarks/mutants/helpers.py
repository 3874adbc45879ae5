"""Helpers: what the code of mutants calls."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

RAN = [False]
"""Whether the changed code of the mutant that is alive came to run."""


def swapped(value: Any) -> Any:
    """A comparison, as it came out."""
    RAN[0] = True
    return value


def everything(mask: Any) -> Any:
    """All of it, whatever the mask says."""
    RAN[0] = True
    return torch.ones_like(mask) if isinstance(mask, Tensor) and mask.dtype == torch.bool else mask


def negative(score: Any) -> Any:
    """A score with the opposite sign; of several values, the first."""
    RAN[0] = True
    if isinstance(score, tuple):
        return (negative(score[0]), *score[1:])
    return -score if isinstance(score, Tensor) and score.dtype != torch.bool else score


def late(x: Any, name: str, *args: Any, **more: Any) -> Any:
    """``x.name(...)``, an ordering or a choice along a dimension, where of equals the later comes first."""
    RAN[0] = True
    if not isinstance(x, Tensor) or any(isinstance(a, Tensor) for a in args):
        return getattr(x, name)(*args, **more)
    dim = more.get("dim", -1 if name == "topk" else args[0])
    dim = dim % x.dim()
    out = getattr(x.flip(dim), name)(*args, **more)
    last = x.shape[dim] - 1
    if isinstance(out, Tensor):
        return last - out
    return type(out)((out.values, last - out.indices))
