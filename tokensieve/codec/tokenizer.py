"""Tokenizer: whatever encodes signals and decodes them again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from tokensieve.core.registry import Registry


@runtime_checkable
class Tokenizer(Protocol):
    """Anything with ``encode`` and ``decode`` is one; everything else is optional.

    Signals are ``(B, 3, H, W)`` images from 0 to 1 or ``(B, 1, 1, L)`` waveforms from -1 to 1, float32. A tokenizer may have:

    - ``levels``: codes of each component of a token; without it no bits are told.
    - ``fit(signals, steps, seed, progress)``: it is trained on the training part.
    - ``neighbours(indices (T, C), generator)``: codes near to others.
    - ``rate``: the sampling rate of the waveforms that it takes, Hz.
    - ``bits``: bits of a signal where it has no codes.
    """

    def encode(self, signals: Tensor) -> Any:
        """``Codes``, int64 indices ``(B, N)`` or ``(B, N, C)``, or what only :meth:`decode` understands."""
        ...

    def decode(self, encoded: Any) -> Tensor:
        """Signals of the shape that was encoded. What :meth:`encode` gave as codes or indices it takes as indices."""
        ...


ADAPTERS: Registry[Callable[[str], Tokenizer]] = Registry("tokenizer adapter", "tokensieve.integrations.codec")
"""What makes a tokenizer of another library from a folder or a hub name: ``diffusers:PATH``, ``transformers:PATH``."""


def register_adapter(name: str) -> Callable[[Callable[[str], Any]], Callable[[str], Any]]:
    """Decorator: a function from a path or hub name to a tokenizer gets the name by which a bench asks for it."""
    return ADAPTERS.register(name)
