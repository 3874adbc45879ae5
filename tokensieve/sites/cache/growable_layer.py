"""A cache layer that does not copy all its entries for each one that comes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokensieve.sites.model.compatibility import BaseQuantizedLayer, DynamicLayer

ROOM = 64
"""A layer that has to grow takes room for one more in so many entries."""


class GrowableLayer(DynamicLayer):
    """A dynamic layer whose tensors have room behind what they hold, once tokens come a few at a time.

    Joining old and new entries at every token copies the whole cache, which on a CPU takes several times as long as the attention
    over it. Here ``keys`` and ``values`` are the front of longer tensors, and new entries are written behind. What else sets
    them (a crop, other rows, entries that leave) sets plain tensors, and the room is taken anew with the next token.

    Attributes:
        room: where the longer tensors lie, to know them again; never a second reference, which would keep them alive.
    """

    keys: Tensor
    values: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.room: tuple[int, ...] = ()

    def reset(self) -> None:
        # Not left to the base class, of which some releases fill the entries with zeros instead.
        state: dict[str, Any] = {"keys": None, "values": None, "is_initialized": False}
        self.__dict__.update(state)
        super().reset()

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        more = key_states.shape[-2]
        plain = self.is_initialized and self.keys.dim() == 4 and not isinstance(self, BaseQuantizedLayer)
        held = self.keys.shape[-2] if plain else 0
        new = key_states, value_states
        old: tuple[Tensor, ...] = (self.keys, self.values)
        if not 0 < more <= held // ROOM or any(_bound(n, o) for n, o in zip(new, old, strict=True)):
            return super().update(key_states, value_states, *args, **kwargs)
        total = held + more
        if self.room != tuple(o.untyped_storage().data_ptr() for o in old) or min(map(_space, old)) < total:
            old = tuple(_longer(o, total + total // ROOM) for o in old)
            self.room = tuple(o.untyped_storage().data_ptr() for o in old)
        grown = []
        for n, o in zip(new, old, strict=True):
            whole = o.as_strided((*o.shape[:2], total, o.shape[3]), o.stride())
            whole[:, :, held:] = n
            grown.append(whole)
        self.keys, self.values = grown
        return self.keys, self.values


def _bound(new: Tensor, old: Tensor) -> bool:
    """Whether writing into ``old`` could not stand for joining: gradients, another kind of number, inference mode at an end."""
    written = old.is_inference() and not torch.is_inference_mode_enabled()
    return new.requires_grad or old.requires_grad or new.dtype != old.dtype or new.device != old.device or written


def _space(x: Tensor) -> int:
    """How many entries there is room for in the tensor whose front ``x``, ``(B, G, n, d)``, is; none where it is no front."""
    b, g, _, d = x.shape
    space = x.untyped_storage().nbytes() // (x.element_size() * b * g * d)
    return space if x.storage_offset() == 0 and x.stride() == (g * space * d, space * d, d, 1) else 0


def _longer(x: Tensor, space: int) -> Tensor:
    """A copy of ``x`` at the front of a tensor with room for ``space`` entries."""
    whole = x.new_empty(*x.shape[:2], space, x.shape[3])
    front = whole[:, :, : x.shape[2]]
    front.copy_(x)
    return front
