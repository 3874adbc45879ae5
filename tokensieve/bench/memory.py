"""Peak memory of a piece of work."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Peak:
    """Peak memory above the level at entry, in bytes.

    On CUDA, what the allocator handed out. On the CPU, the bytes of all tensors alive at the same time, counted as operations make them:
    the same in every run, where the resident set of a process depends on what its allocator holds back. Scratch memory inside a
    kernel is not seen on the CPU, nor are tensors that were there before.
    """

    bytes = 0

    def __enter__(self) -> Peak:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            self._level = torch.cuda.memory_allocated()
        else:
            self._ledger = _Ledger()
            self._ledger.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        if torch.cuda.is_available():
            self.bytes = max(0, torch.cuda.max_memory_allocated() - self._level)
        else:
            self._ledger.__exit__(*exception)
            self.bytes = self._ledger.high


class _Ledger(TorchDispatchMode):
    """Books every storage that operations make, until it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.high = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for x in tree_leaves((args, kwargs)):
            self._book(x, new=False)
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            self._book(x, new=True)
        return out

    def _book(self, x: Any, new: bool) -> None:
        if not isinstance(x, Tensor):
            return
        storage = x.untyped_storage()
        key = id(storage)
        if key in self._known:
            return
        size = storage.nbytes() if new else 0
        self._known.add(key)
        self.now += size
        self.high = max(self.high, self.now)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size
