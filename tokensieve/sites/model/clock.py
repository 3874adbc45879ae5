"""A clock for selection: the time spent recording signals and choosing tokens."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from time import perf_counter
from typing import Any

import torch
from torch import nn


class Clock:
    """Adds up the time spent inside ``with clock:``, while ``on``; autocast is off there, so that selection is exact."""

    def __init__(self, model: nn.Module) -> None:
        self.on = False
        self.seconds = 0.0
        self._model = model
        self._depth = 0
        self._since = 0.0
        self._device = device(model)
        self._exact: AbstractContextManager[Any] = nullcontext()

    def __enter__(self) -> None:
        if self._depth == 0:
            # Precision is what each part asks for; an outer autocast is for the model.
            on = torch.is_autocast_enabled(self._device.type)
            self._exact = torch.autocast(self._device.type, enabled=False) if on else nullcontext()
            self._exact.__enter__()
        if self.on and self._depth == 0:
            self._since = now(device(self._model))
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._exact.__exit__(None, None, None)
        if self.on and self._depth == 0:
            self.seconds += now(device(self._model)) - self._since


def device(model: nn.Module) -> torch.device:
    """Where a model computes; offloaded weights are elsewhere between its passes, and what moves them knows where."""
    found = next(model.parameters()).device
    moved = model.modules() if found.type == "meta" else ()
    where = (getattr(getattr(m, "_hf_hook", None), "execution_device", None) for m in moved)
    return next((torch.device(at) for at in where if at is not None), found)


def now(device: torch.device) -> float:
    """Seconds, once the device has done what it was given; a CPU has."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return perf_counter()
