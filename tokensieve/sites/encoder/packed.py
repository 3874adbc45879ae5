"""Packed: rows of a batch that hold different numbers of tokens run through a block as one row, one behind the other.

The states between blocks are padded, and that form says what is right. A block that is packed is given all tokens that are there
as one sequence, so that its projections and its network see no padding; its attention runs row by row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from tokensieve.sites.encoder.seams import Seam
from tokensieve.sites.model import taps
from tokensieve.sites.model.calls import Detach

FILLED = 0.85
"""The share of the padded places that hold tokens up to which packing is faster: measured on processors, widths of 64 to 768, 64
to 1000 tokens (docs/how-to/encoder-speed.md). Where fewer are padding, gathering takes what it saves."""


@dataclass(frozen=True)
class Rows:
    """Where the tokens of a padded batch stand.

    Attributes:
        real: ``(B, m)`` bool, False at padding.
    """

    real: Tensor

    @cached_property
    def counts(self) -> list[int]:
        """Tokens of each row."""
        return self.real.sum(1).tolist()

    @cached_property
    def at(self) -> Tensor:
        """``(T,)`` long, where in the padded batch, its rows one behind the other, each token stands."""
        return self.real.flatten().nonzero()[:, 0]

    @property
    def pays(self) -> bool:
        """Whether a block is faster on the tokens alone; measured on processors only."""
        return self.real.device.type == "cpu" and sum(self.counts) <= FILLED * self.real.numel()

    def close(self, x: Tensor, dim: int = 1) -> Tensor:
        """``(B, m, ...)`` -> ``(1, T, ...)``; ``dim``: the token dimension."""
        return x.movedim(dim, 1).flatten(0, 1).index_select(0, self.at)[None].movedim(1, dim)

    def open(self, x: Tensor, dim: int = 1) -> Tensor:
        """``(1, T, ...)`` -> ``(B, m, ...)``, zeros at padding."""
        one = x.movedim(dim, 1)[0]
        out = one.new_zeros(self.real.numel(), *one.shape[1:]).index_copy_(0, self.at, one)
        return out.unflatten(0, self.real.shape).movedim(1, dim)

    def arguments(self, given: Mapping[str, Any]) -> dict[str, Any] | None:
        """A block's arguments for one row of all tokens; None where it has one of which it is not known what it is of.

        Masks are of pairs, or of keys, and stay what they are: attention runs on the rows.

        Args:
            given: by name, without the states, of the padded batch.
        """
        out: dict[str, Any] = {}
        for name, value in given.items():
            group = isinstance(value, (tuple, list)) and bool(value) and all(isinstance(v, Tensor) for v in value)
            made = [self._one(name, v) for v in (value if group else [value])]
            if any(isinstance(v, Tensor) and m is None for v, m in zip(value if group else [value], made, strict=True)):
                return None
            out[name] = type(value)(made) if group else made[0]
        return out

    def _one(self, name: str, x: Any) -> Any:
        if not isinstance(x, Tensor) or ("mask" in name and x.dim() == 4):
            return x
        if x.shape[:2] == self.real.shape and x.dim() in (2, 3):
            return self.close(x)
        if x.dim() == 4 and (x.shape[0], x.shape[2]) == self.real.shape:
            return self.close(x, 2)
        return None

    def attend(self, call: taps.Call, mask: Tensor | None) -> Tensor:
        """``(1, T, H, d)``: each row attends to itself.

        Args:
            call: of queries, keys and values of one row of all tokens; mask: ``(B or 1, 1 or H, m or 1, m)``, of the padded ones.
        """
        out = []
        parts = zip(*(x.split(self.counts, 2) for x in (call.query, call.key, call.value)), strict=True)
        for row, (real, (query, key, value)) in enumerate(zip(self.real, parts, strict=True)):
            own = None if mask is None else mask[row % len(mask)][None, ..., real]
            own = own if own is None or own.shape[2] == 1 else own[:, :, real]
            out.append(
                scaled_dot_product_attention(
                    query, key, value, own, scale=call.scale, is_causal=call.causal and mask is None,
                    enable_gqa=query.shape[1] != key.shape[1],
                )
            )  # fmt: skip
        return torch.cat(out, 2).transpose(1, 2)


class Packing:
    """How the block that is running holds the tokens of a batch.

    Attributes:
        rows: by a number of tokens, the rows that stand one behind the other in it; none where it holds padded rows.
        blocks: how many ran packed.
    """

    def __init__(self) -> None:
        self.rows: dict[int, Rows] = {}
        self.blocks = 0

    def enter(self, hidden: Tensor, real: Tensor | None, given: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """States and arguments of a block, of all tokens in one row where that is faster.

        Args:
            hidden: ``(B, m, D)``; real: ``(B, m)`` bool, None where there is no padding; given: as :meth:`Rows.arguments`.
        """
        rows = None if real is None else Rows(real)
        made = rows.arguments(given) if rows is not None and rows.pays else None
        if made is None:
            return hidden, given
        assert rows is not None
        self.blocks, self.rows[len(rows.at)] = self.blocks + 1, rows
        return rows.close(hidden), made

    def close(self, hidden: Tensor, real: Tensor | None) -> Tensor:
        """Padded states of fewer tokens as the block holds them."""
        if not self.rows:
            return hidden
        rows = Rows(hidden.new_ones(hidden.shape[:2], dtype=torch.bool) if real is None else real)
        self.rows[len(rows.at)] = rows
        return rows.close(hidden)

    def open(self, x: Tensor, dim: int = 1) -> Tensor:
        """What the block holds, padded; ``dim``: the token dimension."""
        return self.rows[x.shape[dim]].open(x, dim) if self.rows else x

    def as_entered(self, hidden: Tensor) -> Tensor:
        """Padded states of the tokens that entered the block, as it held them then."""
        return next(iter(self.rows.values())).close(hidden) if self.rows else hidden

    def leave(self) -> None:
        """The block is over."""
        self.rows = {}


def packable(block: nn.Module, attention: nn.Module | None, found: Seam | None) -> bool:
    """Whether a block does the same to tokens in one row: its parts are known (it has a seam), and all that it does between
    tokens is in the one call of its attention's kernel, and knows no places."""
    if found is None or attention is None or taps.kind(getattr(attention, "config", None)) != "sdpa":
        return False
    placed = any(hasattr(attention, name) for name in ("compute_bias", "_rel_shift"))
    return not placed and not any("relative_position" in name for name, _ in block.named_modules())


def attach(
    attention: nn.Module,
    index: int,
    packing: Callable[[], Packing | None],
    mask: Callable[[taps.Call], Tensor | None],
) -> Detach:
    """Have the attention of block ``index`` run under a mask of the padded rows, and row by row where the block is packed."""

    def limit(call: taps.Call) -> tuple[Tensor | None, Tensor | None]:
        now = packing()
        return (call.mask if now is not None and now.rows else mask(call)), None

    def kernel(call: taps.Call, kwargs: dict[str, Any]) -> taps.Own | None:
        now = packing()
        if now is None or not now.rows:
            return None
        taps.refuse(kwargs, index, "rows of different numbers of tokens do not take")
        rows, seen = now.rows[call.query.shape[2]], mask(call)
        return lambda call: rows.attend(call, seen)

    return taps.attach(attention, limit=limit, kernel=kernel)
