"""What the front end tells the worker of a picture; it travels inside the picture's item, as bytes."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass

import torch
from torch import Tensor

from tokensieve.core.stage import Stage

FIELD = "tokensieve"
"""What the field of an item is called."""


@dataclass(frozen=True)
class Told:
    """What is known of a picture where its placeholders are made.

    Attributes:
        stage: what thins it.
        runs: for each run of its slots how many tokens there are, and how many stay.
        span: how many positions it takes in the prompt that holds all of its tokens.
    """

    stage: Stage
    runs: tuple[tuple[int, int], ...]
    span: int

    @property
    def tokens(self) -> int:
        return sum(n for n, _ in self.runs)

    @property
    def kept(self) -> int:
        return sum(k for _, k in self.runs)

    def pack(self) -> Tensor:
        """``(bytes,)`` uint8."""
        text = json.dumps({"stage": self.stage.to_json(), "runs": self.runs, "span": self.span}, sort_keys=True)
        return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


def unpack(told: Tensor) -> Told:
    """What :meth:`Told.pack` made."""
    return _read(bytes(told.tolist()))


@functools.lru_cache(maxsize=1024)
def _read(told: bytes) -> Told:
    data = json.loads(told)
    return Told(Stage.from_json(data["stage"]), tuple((n, k) for n, k in data["runs"]), data["span"])
