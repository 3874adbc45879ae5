"""Roles: which tokens of an encoder's sequence may leave, and which stay wherever they stand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokensieve.parts.select import compact, take
from tokensieve.sites.model import masks
from tokensieve.sites.model.blocks import Stack

NAMED = ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "decoder_start_token_id")
"""Fields of configs that name tokens with a role in every text."""


@dataclass(frozen=True)
class Layout:
    """Where the tokens that may leave stand in a sequence of ``length``.

    Attributes:
        front, back: how many tokens at either end stay, in every row.
        place: ``(B, n)`` long, where those that may leave stand, the first ones of each row; None where they are all between
            front and back.
        valid: ``(B, n)`` bool, False at padding of ``place``.
        real: ``(B, length)`` bool, False at the padding of the sequence; None where it has none.
    """

    length: int
    front: int
    back: int
    place: Tensor | None = None
    valid: Tensor | None = None
    real: Tensor | None = None

    @property
    def count(self) -> int:
        """Tokens that may leave, of the longest row."""
        if self.place is None:
            return self.length - self.front - self.back
        return self.place.shape[1]

    def places(self, batch: int) -> Tensor:
        """``(B, n)`` long: where those that may leave stand, -1 at padding."""
        if self.place is None:
            return torch.arange(self.front, self.length - self.back).expand(batch, -1)
        return self.place if self.valid is None else self.place.masked_fill(~self.valid, -1)

    def tokens(self, hidden: Tensor) -> Tensor:
        """``(B, L, D)`` -> ``(B, n, D)``: the states of those that may leave."""
        if self.place is None:
            return hidden[:, self.front : self.length - self.back]
        return take(hidden.contiguous(), self.place)

    def of(self, x: Tensor, states: bool) -> Tensor:
        """What was recorded of all tokens, of those that may leave: ``(B, H, L, d)`` where ``states``, else ``(B, H, L)``."""
        if self.place is None:
            part = slice(self.front, self.length - self.back)
            return x[:, :, part] if states else x[..., part]
        return masks.gather(x, self.place, 2)


def layout(stack: Stack, hidden: Tensor, given: Mapping[str, Any], mask: Tensor | None) -> Layout:
    """The layout of a pass.

    Args:
        hidden: ``(B, L, D)``, in front of the first block; given: what the encoder was called with, by name.
        mask: ``(B or 1, L)`` bool, False at padding, or None.
    """
    batch, length, _ = hidden.shape
    real = None if mask is None or bool(mask.all()) else mask.expand(batch, length)
    back = stack.behind
    ids = given.get("input_ids")
    text = isinstance(ids, Tensor) and ids.shape == (batch, length)
    if not text and given.get("inputs_embeds") is None:
        if real is None:
            return Layout(length, stack.specials, back)
        stays = torch.zeros_like(real)
        stays[:, : stack.specials] = True
        stays[:, length - back :] = back > 0
    else:
        stays = _of_text(ids if text else None, real, hidden, stack)
        ends = _ends(stays) if real is None else None
        if ends is not None:
            return Layout(length, *ends)
    free = ~stays if real is None else ~stays & real
    # A text of nothing but tokens with a role has one that may leave, and as the only one does not.
    free |= (~free.any(1, keepdim=True)) & stays & (stays.long().cumsum(1) == 1)
    place, valid = compact(free)
    return Layout(length, 0, 0, place, valid, real)


def _of_text(ids: Tensor | None, real: Tensor | None, hidden: Tensor, stack: Stack) -> Tensor:
    """``(B, L)`` bool: the first and the last token of each text, and those with a role: of a run of equal ones the first, since
    some models pad with what ends a text and read it where it stands first."""
    batch, length, _ = hidden.shape
    at = torch.arange(length, device=hidden.device).expand(batch, -1)
    inside = torch.ones_like(at, dtype=torch.bool) if real is None else real
    first = torch.where(inside, at, length).amin(1, keepdim=True)
    last = torch.where(inside, at, -1).amax(1, keepdim=True)
    stays = (at == first) | (at == last)
    if ids is None:
        return stays
    config: Any = stack.root.config
    listed = [getattr(config, name, None) for name in NAMED]
    named = [i for one in listed if one is not None for i in (one if isinstance(one, (list, tuple)) else [one])]
    ends = ids.gather(1, last.clamp(min=0))  # what ends a text ends its parts, too
    role = torch.isin(ids, torch.tensor(named, device=ids.device, dtype=ids.dtype)) | (ids == ends)
    role[:, 1:] &= ids[:, 1:] != ids[:, :-1]
    return stays | (role & inside)


def _ends(stays: Tensor) -> tuple[int, int] | None:
    """How many tokens stay in front and behind, where those are all that stay, in every row alike."""
    if bool((stays != stays[:1]).any()):
        return None
    row = stays[0].tolist()
    if all(row):
        return len(row), 0
    front = row.index(False)
    back = row[::-1].index(False)
    return None if any(row[front : len(row) - back]) else (front, back)


def padding(mask: Any, length: int) -> Tensor | None:
    """``(B or 1, length)`` bool, False at tokens that no other one sees, from the mask that a block gets; None without one."""
    if not isinstance(mask, Tensor) or mask.shape[-1] != length:
        return None
    seen = mask > torch.finfo(mask.dtype).min / 2 if mask.is_floating_point() else mask.bool()
    return seen if mask.dim() == 2 else seen.flatten(1, -2).any(1) if mask.dim() == 4 else None


def grid(stack: Stack, given: Mapping[str, Any], count: int) -> tuple[int, int] | None:
    """Rows and columns of ``count`` patches of the pictures that an encoder is given; None where that is not known."""
    pixels, patch = given.get("pixel_values"), getattr(stack.config, "patch_size", None)
    sides = (patch, patch) if isinstance(patch, int) else patch
    if not isinstance(pixels, Tensor) or pixels.dim() != 4 or not isinstance(sides, (tuple, list)):
        return None
    found = (pixels.shape[2] // sides[0], pixels.shape[3] // sides[-1])
    return found if found[0] * found[1] == count else None
