"""Placeholders: which slots of a prompt are taken by a picture's tokens, and which are left when few of these stay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor


@dataclass(frozen=True)
class Left:
    """What is left of a picture's part of a prompt.

    Attributes:
        full: its token ids; embedded: for each whether it takes one of the picture's tokens.
        runs: for each run of such slots how many there were, and how many are left.
    """

    full: tuple[int, ...]
    embedded: tuple[bool, ...]
    runs: tuple[tuple[int, int], ...]


def thinned(full: Sequence[int], embedded: Sequence[bool], count: Callable[[int], int]) -> Left:
    """The first few slots of each run of embedded ones; what stands around and between them (borders, names of tiles) stays.

    Args:
        full: token ids; embedded: for each whether it takes one of the picture's tokens.
        count: from the length of a run to how many of its slots stay.
    """
    ids: list[int] = []
    mask: list[bool] = []
    runs, start = [], 0
    for inside, group in groupby(embedded):
        length = len(list(group))
        stay = count(length) if inside else length
        ids += full[start : start + stay]
        mask += [inside] * stay
        if inside:
            runs.append((length, stay))
        start += length
    return Left(tuple(ids), tuple(mask), tuple(runs))


def runs_of(embedded: Tensor) -> list[tuple[int, int]]:
    """``(n,)`` bool -> the runs of True, each as (start, length)."""
    out, start = [], 0
    for inside, group in groupby(embedded.tolist()):
        length = len(list(group))
        if inside:
            out.append((start, length))
        start += length
    return out


def mask_of(embedded: tuple[bool, ...], full: Sequence[int]) -> Tensor:
    """``(n,)`` bool, as vLLM asks for it with the ids."""
    return torch.tensor(embedded)
