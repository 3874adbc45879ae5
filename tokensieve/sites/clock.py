"""A clock for selection: the time spent recording signals and choosing tokens."""

from __future__ import annotations

from time import perf_counter

import torch
from torch import nn


class Clock:
    """Adds up the time spent inside ``with clock:``; runs only while ``on``."""

    def __init__(self, model: nn.Module) -> None:
        self.on = False
        self.seconds = 0.0
        self._model = model
        self._depth = 0
        self._since = 0.0

    def __enter__(self) -> None:
        if self.on and self._depth == 0:
            self._since = now(device(self._model))
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self.on and self._depth == 0:
            self.seconds += now(device(self._model)) - self._since


def device(model: nn.Module) -> torch.device:
    """Where a model computes."""
    return next(model.parameters()).device


def now(device: torch.device) -> float:
    """Seconds, once the device has done what it was given; a CPU has."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return perf_counter()
