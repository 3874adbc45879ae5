"""Where the time of a generation goes, and how much memory it takes."""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tokensieve.sites.model.clock import device, now
from tokensieve.sites.model.structure import Anatomy
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
        self._roots = {"encoder": anatomy.vision.root} if anatomy.vision else {}
        self._roots["language"] = anatomy.language.root
        self._device = device(anatomy.model)
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
        """One generation, under a sieve or none. Selection is complete at the end: part of it runs between the two roots."""
        self._sieve, self.split, self._first = sieve, Split(), True
        if sieve is not None:
            sieve.timed = True
        chosen = self._chosen()
        yield self.split
        self.split.selection = self._chosen() - chosen

    def _chosen(self) -> float:
        return self._sieve.seconds if self._sieve is not None else 0.0

    def _start(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            self._began[name] = (now(self._device), self._chosen())

        return hook

    def _stop(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            began, chosen = self._began[name]
            spent = now(self._device) - began - (self._chosen() - chosen)
            if name == "encoder":
                self.split.encoder += spent
            elif self._first:
                self.split.prefill, self._first = spent, False
            else:
                self.split.steps.append(spent)

        return hook


class Peak:
    """Peak memory above the level at entry, in bytes: allocated memory on CUDA; on a CPU under Linux the resident set;
    otherwise None. What the allocator holds back is given up first: it would hide what is allocated again.

    Args:
        collect: whether objects that nothing refers to any more are looked for first, which takes longer than a short prompt.
    """

    bytes: int | None = None

    def __init__(self, device: torch.device, collect: bool = True):
        self._device, self._collect = device, collect

    def __enter__(self) -> Peak:
        if self._collect:
            gc.collect()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._level: int | None = torch.cuda.memory_allocated(self._device)
            return self
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        self._level = _status("VmRSS") if self._device.type == "cpu" else None
        return self

    def __exit__(self, *_: object) -> None:
        high = torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else _status("VmHWM")
        if high is not None and self._level is not None:
            self.bytes = max(0, high - self._level)


def _status(name: str) -> int | None:
    with suppress(OSError):
        found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return int(found[1]) * 1024 if found else None
    return None
