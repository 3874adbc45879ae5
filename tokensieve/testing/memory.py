"""Memory: what a method holds at once, and what of it lives at the same time."""

from __future__ import annotations

from typing import Any
from weakref import WeakSet, finalize

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from tokensieve.testing.trial import Trial, expect


class Live(TorchDispatchMode):
    """Records the most bytes of tensors that operations inside returned and that lived at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self.known: WeakSet[Any] = WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in tree_iter(out):
            if isinstance(t, Tensor) and t.layout == torch.strided and t.untyped_storage() not in self.known:
                self.known.add(t.untyped_storage())
                self.bytes += t.untyped_storage().nbytes()
                finalize(t.untyped_storage(), self.free, t.untyped_storage().nbytes())
        self.peak = max(self.peak, self.bytes)
        return out

    def free(self, size: int) -> None:
        self.bytes -= size


class Largest(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation inside returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in tree_iter(out):
            # An expanded view owns less than it shows.
            if isinstance(t, Tensor) and t.layout == torch.strided:
                self.elements = max(self.elements, min(t.numel(), t.untyped_storage().nbytes() // t.element_size()))
        return out


def check_memory_is_not_quadratic(trial: Trial) -> None:
    """No tensor holds a number for each pair of 6,000 tokens; pairs of up to 4,096 tokens may be held whole."""
    n = 6000
    x, given = trial.draw(1, n, dim=8)
    with Largest() as seen:
        trial.run(x, 100, given, grid=(60, 100))
    most = n * n // (2 if trial.made.pairs else 4)
    expect(
        seen.elements < most,
        f"no tensor of {most:,} elements at {n:,} tokens (work in blocks); the largest held {seen.elements:,}",
    )


def check_memory_of_many_tokens(trial: Trial) -> None:
    """Less than 1 GB lives at 20,000 tokens. Slow: it is no part of what :func:`check_method` runs unless asked."""
    n = 20_000
    x, given = trial.draw(1, n, dim=8)
    with Live() as seen:
        trial.run(x, 2, given, grid=(100, 200))
    expect(seen.peak < 1e9, f"less than 1 GB at {n:,} tokens; {seen.peak / 1e9:.2f} GB lived at once")
