"""Signals: what a method may read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

LayerTensor = Tensor | Mapping[int, Tensor]
"""One tensor, or one per encoder layer: ``{-2: a, -1: b}``."""


@dataclass(frozen=True)
class Need:
    """A signal that a method reads.

    Args:
        name: a field of :class:`Signals`.
        layers: the encoder layers it is read at (negative counts from the end); () where the site decides.
        instead: names of signals that stand in where this one is absent, tried in this order.
        depth: the number of layers of the encoder that ``layers`` speak of, where a paper names layers of one; they are scaled
            to an encoder of another depth. None: they are meant as they are.
    """

    name: str
    layers: tuple[int, ...] = ()
    instead: tuple[str, ...] = ()
    depth: int | None = None

    def scaled(self, layer: int, depth: int) -> int:
        """A layer counted from the end, in an encoder of ``depth`` layers; -2, where features usually leave, stays."""
        if self.depth is None or layer >= -2:
            return layer
        return -2 - round((-2 - layer) * (depth - 2) / (self.depth - 2))


def CLSAttention(*layers: int, depth: int | None = None) -> Need:
    """Attention of the encoder's CLS token to the patches; mean received attention where an encoder has no CLS."""
    return Need("cls_attention", layers, ("received_attention",), depth)


def ReceivedAttention(*layers: int, depth: int | None = None) -> Need:
    """Mean attention that each patch receives from all queries."""
    return Need("received_attention", layers, ("cls_attention",), depth)


def Keys(*layers: int) -> Need:
    """Attention keys; the features where none are given."""
    return Need("keys", layers, instead=("features",))


def Values(*layers: int) -> Need:
    """Attention values; the features where none are given."""
    return Need("values", layers, instead=("features",))


TextAttention = Need("text_attention", instead=("text", "received_attention"))
"""Attention rows of the text tokens to the visual tokens, at the language-model layer of the stage."""

LastAttention = Need("last_attention", instead=("text_attention", "text", "received_attention"))
"""Attention of the last prompt token to the visual tokens."""

Text = Need("text")
"""Embeddings of the text tokens, in the space of the features."""

HOW: dict[str, str] = {
    "features": "x, of shape (B, N, D)",
    "cls_attention": "cls_attention=a with a of shape (B, heads, N) or (B, N), or {layer: a}",
    "received_attention": "received_attention=a with a of shape (B, heads, N) or (B, N), or {layer: a}",
    "text_attention": "text_attention=a with a of shape (B, heads, T, N) or (B, T, N)",
    "last_attention": "last_attention=a with a of shape (B, heads, N) or (B, N)",
    "text": "text=t with t of shape (B, T, D) in the space of the features",
    "keys": "keys=k with k of shape (B, N, D) or (B, heads, N, D/heads)",
    "values": "values=v with v of shape (B, N, D) or (B, heads, N, D/heads)",
    "grid": "grid=(rows, columns)",
}


class MissingSignal(ValueError):
    """A method needs a signal that was not given."""


@dataclass(frozen=True, eq=False)
class Signals:
    """What is known about the N tokens of each of B rows; everything but ``features`` is optional.

    Half-precision tensors are widened to float32 for selection. Unless said otherwise, tensors are batch first.

    Attributes:
        features: ``(B, N, D)``.
        mask: ``(B, N)`` bool, False at padding.
        grid: ``(rows, columns)`` with rows x columns = N where the tokens lie on one (row-major).
        cls_attention, received_attention: ``(B, heads, N)`` or ``(B, N)``, or a mapping from layer to such.
        text_attention: ``(B, heads, T, N)`` or ``(B, T, N)``, rows of text tokens over visual tokens.
        last_attention: ``(B, heads, N)`` or ``(B, N)``, the row of the last prompt token.
        text: ``(B, T, D)``; ``text_mask``: ``(B, T)`` bool, False at padding.
        keys, values: ``(B, N, D')`` or ``(B, heads, N, d)``, or a mapping from layer to such.
        sizes: ``(B, N)``, how many source tokens each token already stands for.
        seed: for methods that draw.
    """

    features: Tensor
    mask: Tensor | None = None
    grid: tuple[int, int] | None = None
    cls_attention: LayerTensor | None = None
    received_attention: LayerTensor | None = None
    text_attention: Tensor | None = None
    last_attention: Tensor | None = None
    text: Tensor | None = None
    text_mask: Tensor | None = None
    keys: LayerTensor | None = None
    values: LayerTensor | None = None
    sizes: Tensor | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.features.dim() != 3:
            raise ValueError(f"features must have shape (B, N, D); got {tuple(self.features.shape)}")
        b, n, _ = self.features.shape
        if n == 0 or b == 0:
            raise ValueError(f"features hold no token: shape {tuple(self.features.shape)}")
        if self.mask is not None:
            _expect("mask", self.mask, (b, n))
            if not self.mask.any(1).all():
                raise ValueError("mask leaves a row without any token; every row must hold at least one")
        if self.grid is not None and self.grid[0] * self.grid[1] != n:
            raise ValueError(f"grid={self.grid} holds {self.grid[0] * self.grid[1]} tokens; features hold {n}")
        self._check_text()
        for name, axis in _TOKEN_AXIS.items():
            for value in _each(getattr(self, name)):
                if value.shape[0] != b or value.shape[axis] != n:
                    raise ValueError(
                        f"{name} has shape {tuple(value.shape)}; pass {HOW.get(name, name)}, here B={b}, N={n}"
                    )
        for f in fields(self):
            value = getattr(self, f.name)
            for one in _each(value):
                _finite(f.name, one, self.mask)
            object.__setattr__(self, f.name, _widen(value))

    def _check_text(self) -> None:
        b, _, d = self.features.shape
        if self.text is not None and (self.text.dim() != 3 or self.text.shape[0] != b or self.text.shape[2] != d):
            raise ValueError(f"text has shape {tuple(self.text.shape)}; pass {HOW['text']}, here B={b}, D={d}")
        lengths = {
            name: value.shape[axis]
            for name, axis in (("text", 1), ("text_mask", 1), ("text_attention", -2))
            if (value := getattr(self, name)) is not None
        }
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the text signals hold different numbers of tokens: {lengths}")

    @property
    def batch(self) -> int:
        return self.features.shape[0]

    @property
    def n(self) -> int:
        return self.features.shape[1]

    @property
    def device(self) -> torch.device:
        return self.features.device

    @cached_property
    def valid(self) -> Tensor:
        """``(B, N)`` bool: tokens that are not padding."""
        if self.mask is not None:
            return self.mask
        return torch.ones(self.features.shape[:2], dtype=torch.bool, device=self.device)

    @cached_property
    def weight(self) -> Tensor:
        """``(B, N)`` float: sizes, or ones."""
        return self.valid.to(self.features.dtype) if self.sizes is None else self.sizes

    def has(self, name: str) -> bool:
        return getattr(self, name) is not None

    def get(self, need: Need, layer: int | None = None) -> tuple[str, Tensor]:
        """The signal a need asks for, or the first stand-in that is present: (its name, its tensor).

        Raises:
            MissingSignal: neither is there; the message says how to pass it.
        """
        for name in (need.name, *need.instead):
            value = getattr(self, name)
            if value is not None:
                return name, _at(name, value, layer)
        ways = " or ".join(HOW.get(n, n) for n in (need.name, *need.instead))
        raise MissingSignal(f"this method needs the signal {need.name!r}; pass {ways}")

    def metric(self, need: Need, layer: int | None = None) -> Tensor:
        """Keys or values as ``(B, N, D')``, heads joined; their stand-in otherwise."""
        _, x = self.get(need, layer)
        return x if x.dim() == 3 else x.transpose(1, 2).flatten(2)

    def noise(self, salt: int = 0) -> Tensor:
        """``(B, N)`` uniform noise in [0, 1) drawn from the seed and the row's own contents.

        The same row draws the same noise in any batch and under any padding; different rows draw different noise.
        """
        bits = self.features.detach().float().contiguous().view(torch.int32).sum(2, dtype=torch.long)
        contents = torch.where(self.valid, bits, 0).sum(1).tolist()
        out = torch.zeros(self.features.shape[:2])
        for row, content in enumerate(contents):
            valid = self.valid[row].cpu()
            seed = (content * 1_000_003 + self.seed * 7919 + salt) % (2**63)
            draw = torch.rand(int(valid.sum()), generator=torch.Generator().manual_seed(seed))
            out[row, valid] = draw
        return out.to(self.device)

    def over(self, **changes: Any) -> Signals:
        """A copy with some signals replaced."""
        return replace(self, **changes)


_TOKEN_AXIS = {
    "cls_attention": -1,
    "received_attention": -1,
    "text_attention": -1,
    "last_attention": -1,
    "keys": -2,
    "values": -2,
    "sizes": -1,
}


def _each(value: Any) -> list[Tensor]:
    if isinstance(value, Mapping):
        return list(value.values())
    return [value] if isinstance(value, Tensor) else []


def _at(name: str, value: LayerTensor, layer: int | None) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if layer is None:
        return value[max(value)]
    if layer not in value:
        raise MissingSignal(f"this method reads {name} at layer {layer}; {name} holds layers {sorted(value)}")
    return value[layer]


def _widen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _widen(v) for k, v in value.items()}
    if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16):
        return value.float()
    return value


def _expect(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(value.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(value.shape)}; expected {shape}")


def _finite(name: str, value: Tensor, mask: Tensor | None) -> None:
    """Refuse NaN and infinity outside padding, naming the first place. One pass in the good case."""
    if not value.is_floating_point() or bool(torch.isfinite(value.sum())) or bool(torch.isfinite(value).all()):
        return
    bad = ~torch.isfinite(value)
    axis = _TOKEN_AXIS.get(name, 1) % value.dim()
    if mask is not None and name != "text":
        shape = [1] * value.dim()
        shape[0], shape[axis] = mask.shape
        bad &= mask.reshape(shape)
        if not bad.any():
            raise ValueError(
                f"{name} holds NaN or infinite values at padding; zero them (0 * NaN would leak into merges)"
            )
    where = bad.nonzero()[0].tolist()
    raise ValueError(
        f"{name} holds NaN or infinite values: first in row {where[0]}, token {where[axis]}; {int(bad.sum())} in all"
    )
