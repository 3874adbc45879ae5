"""A clock for selection: the time spent recording signals and choosing tokens."""

from __future__ import annotations

from time import perf_counter

import torch


class Clock:
    """Adds up the time spent inside ``with clock:``; runs only while ``on``, synchronising CUDA."""

    def __init__(self) -> None:
        self.on = False
        self.seconds = 0.0
        self._depth = 0
        self._since = 0.0

    def __enter__(self) -> None:
        if self.on and self._depth == 0:
            self._since = _now()
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self.on and self._depth == 0:
            self.seconds += _now() - self._since


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return perf_counter()
