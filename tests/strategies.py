"""Shared random tensors: full sets of signals, as a method's needs ask for them."""

from __future__ import annotations

from typing import Any
from weakref import WeakSet, finalize

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from tokensieve.method import Method

HEADS, TEXT = 2, 7


def features(batch: int, n: int, dim: int = 16, seed: int = 0) -> Tensor:
    return torch.randn(batch, n, dim, generator=torch.Generator().manual_seed(seed))


def signals(method: Method, batch: int, n: int, dim: int = 16, seed: int = 1) -> dict[str, Any]:
    """Every signal that a method names among its needs, random, as `tokensieve.reduce` takes them."""
    draw = torch.Generator().manual_seed(seed)
    shapes = {
        "cls_attention": (batch, HEADS, n),
        "received_attention": (batch, HEADS, n),
        "cls_similarity": (batch, HEADS, n),
        "pagerank": (batch, HEADS, n),
        "last_attention": (batch, HEADS, n),
        "text_attention": (batch, HEADS, TEXT, n),
        "text_text": (batch, TEXT, TEXT),
        "text": (batch, TEXT, dim),
        "keys": (batch, n, dim),
        "values": (batch, n, dim),
        "window_attention": (batch, HEADS, TEXT, n),
        "accumulated_attention": (batch, HEADS, n),
        "expected_logits": (batch, HEADS, n),
        "probe_attention": (batch, HEADS, n),
        "token_ids": (batch, n),
        "visual": (batch, n),
        "visual_share": (batch, HEADS, n),
        "relevance": (batch, n),
        "entropy": (batch, n),
        "ranking": (batch, n),
        "idf": (batch, n),
        "stop": (batch, n),
        "neurons": (batch, n, 3 * dim),
        "text_neurons": (batch, TEXT, 3 * dim),
    }
    out: dict[str, Any] = {}
    for name, shape in shapes.items():
        made = torch.randn(shape, generator=draw)
        if name in {need.name for need in method.needs}:
            out[name] = (
                made.softmax(-1) if name.endswith(("attention", "similarity", "rank", "share", "text_text")) else made
            )
    if "word" in {need.name for need in method.needs}:
        # Words of two tokens that come again, and tokens of none.
        place = torch.arange(n)
        out["word"] = torch.where(place % 7 == 6, -1, place // 2 % 11).repeat(batch, 1)
    if "token_ids" in out:
        out["token_ids"] = (3 * out["token_ids"]).round().abs()
    return out


def rows(given: dict[str, Any], index: Any) -> dict[str, Any]:
    """The signals of some rows of the batch."""
    return {k: v[index] if isinstance(v, Tensor) else v for k, v in given.items()}


def tokens(given: dict[str, Any], index: Tensor) -> dict[str, Any]:
    """The signals of some tokens."""
    axis = {"keys": 1, "values": 1, "text": None, "neurons": 1, "text_neurons": None, "text_text": None}
    out = {}
    for k, v in given.items():
        dim = axis.get(k, -1)
        out[k] = v if dim is None or not isinstance(v, Tensor) else v.index_select(dim, index)
    return out


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
