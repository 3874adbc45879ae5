"""Pictures that vLLM hands to the encoder together: one by one, and in batches that are no larger than what it has measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def part(given: Mapping[str, Any], pictures: int, start: int, stop: int) -> dict[str, Any] | None:
    """What the pictures from ``start`` to ``stop`` were given, of what all ``pictures`` were; None where that cannot be told.

    A tensor or list holds one entry for each picture, or rows for all of them one after the other; of these a grid
    ``(pictures, 3)`` or a number of tiles ``(pictures,)`` says how many are whose. What is neither is of all of them.
    """
    if (start, stop) == (0, pictures):
        return dict(given)
    out: dict[str, Any] = {}
    for name, value in given.items():
        if not isinstance(value, (list, tuple)) and not (isinstance(value, Tensor) and value.dim()):
            out[name] = value  # one for all
            continue
        if len(value) == pictures:
            out[name] = value[start:stop]
            continue
        lengths = next((n for n in _lengths(given, pictures) if sum(n) == len(value)), None)
        if lengths is None:
            return None
        out[name] = value[sum(lengths[:start]) : sum(lengths[:stop])]
    return out


def batches(cost: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """Consecutive stretches (start, stop) whose cost is at most ``most``; what alone costs more goes alone."""
    start, total = 0, 0
    for i, one in enumerate(cost):
        if i > start and total + one > most:
            yield start, i
            start, total = i, 0
        total += one
    yield start, len(cost)


def _lengths(given: Mapping[str, Any], pictures: int) -> Iterator[list[int]]:
    for value in given.values():
        if not isinstance(value, Tensor) or value.is_floating_point() or value.dtype == torch.bool:
            continue
        if value.shape == (pictures, 3):
            yield value.prod(1).tolist()
        elif value.shape in ((pictures,), (pictures, 1)):
            yield value.flatten().tolist()
