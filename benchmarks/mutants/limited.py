"""Limited: a check that takes too long is stopped."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Hangs(BaseException):
    """A check takes too long."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise :class:`Hangs` where what runs here takes longer."""

    def stop(*_: Any) -> None:
        raise Hangs

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
