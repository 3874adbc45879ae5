"""Where the time of a generation goes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import nn

from tokensieve.sites.anatomy import Anatomy
from tokensieve.sites.sieve import Sieve


@dataclass
class Split:
    """Seconds of one generation; ``decode`` is per generated token after the first."""

    encoder: float = 0.0
    selection: float = 0.0
    prefill: float = 0.0
    steps: list[float] = field(default_factory=list)

    @property
    def decode(self) -> float:
        return sorted(self.steps)[len(self.steps) // 2] if self.steps else 0.0


class Watchmaker:
    """Splits generations into encoder, selection, prefill and decode, by hooks around the encoder and the language model.

    Attach it before a sieve: its hooks then see the sieve's work from outside, and selection is taken out of the part it ran in.
    """

    def __init__(self, anatomy: Anatomy):
        assert anatomy.language is not None
        self._roots = {"encoder": anatomy.vision.root, "language": anatomy.language.root}
        self._sieve: Sieve | None = None
        self.split = Split()
        self._began: dict[str, tuple[float, float]] = {}
        self._first = True

    @contextmanager
    def attached(self) -> Iterator[Watchmaker]:
        handles = []
        for name, root in self._roots.items():
            handles.append(root.register_forward_pre_hook(self._start(name), prepend=True))
            handles.append(root.register_forward_hook(self._stop(name)))
        try:
            yield self
        finally:
            for h in handles:
                h.remove()

    @contextmanager
    def watching(self, sieve: Sieve | None) -> Iterator[Split]:
        """One generation, under a sieve or none."""
        self._sieve, self.split, self._first = sieve, Split(), True
        if sieve is not None:
            sieve.timed = True
        yield self.split

    def _chosen(self) -> float:
        return self._sieve.seconds if self._sieve is not None else 0.0

    def _start(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            self._began[name] = (now(), self._chosen())

        return hook

    def _stop(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            began, chosen = self._began[name]
            selection = self._chosen() - chosen
            spent = now() - began - selection
            self.split.selection += selection
            if name == "encoder":
                self.split.encoder += spent
            elif self._first:
                self.split.prefill, self._first = spent, False
            else:
                self.split.steps.append(spent)

        return hook


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return perf_counter()
