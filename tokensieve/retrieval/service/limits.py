"""Limits: how much one service takes on at once, and how long it waits."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Limits:
    """What a service refuses.

    Attributes:
        body: bytes of a request's body (413 beyond it).
        requests: requests that are answered at once (429 beyond them).
        waiting: searches that wait for their turn (429 beyond them).
        together: waiting searches that are encoded and scored in one batch.
        seconds: until a search is answered (504), and until the next part of a body arrives (408).
    """

    body: int = 64 << 20
    requests: int = 256
    waiting: int = 128
    together: int = 32
    seconds: float = 30.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) <= 0:
                raise ValueError(f"{field.name}={getattr(self, field.name)}; it must be above 0")
