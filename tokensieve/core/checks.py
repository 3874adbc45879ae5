"""Checks: what tensors must be to serve as signals."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from tokensieve.core.signal_table import signal


def each(value: Any) -> list[Tensor]:
    if isinstance(value, Mapping):
        return list(value.values())
    return [value] if isinstance(value, Tensor) else []


def widened(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: widened(v) for k, v in value.items()}
    if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16):
        return value.float()
    return value


def expect(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(value.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(value.shape)}; expected {shape}")


def finite(name: str, value: Tensor, mask: Tensor | None) -> None:
    """Refuse NaN and infinity outside padding, naming the first place. One pass in the good case."""
    if not value.is_floating_point() or isfinite(value.detach().sum()) or bool(torch.isfinite(value).all()):
        return
    bad = ~torch.isfinite(value)
    of_text = signal(name).axis is None
    axis = (signal(name).axis or signal(name).text_axis or 1) % value.dim()
    if mask is not None and not of_text:
        shape = [1] * value.dim()
        shape[0], shape[axis] = mask.shape
        bad &= mask.reshape(shape)
        if not bad.any():
            raise ValueError(
                f"{name} holds NaN or infinite values at padding; zero them (0 * NaN would leak into merges)"
            )
    where = bad.nonzero()[0].tolist()
    raise ValueError(
        f"{name} holds NaN or infinite values: first in row {where[0]}, token {where[axis]}; {int(bad.sum())} in all"
    )
