"""Watch: what an encoder can tell about its tokens, recorded at the blocks asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor

from tokensieve.core.needs import Need
from tokensieve.parts.attention import rows
from tokensieve.sites.model import taps
from tokensieve.sites.model.blocks import Stack
from tokensieve.sites.model.calls import Detach
from tokensieve.sites.model.clock import Clock

Heard = dict[str, dict[int, list[Tensor]]]
"""Signals by name and layer, one of each call: a block may be called several times in one pass."""
ENCODER_SIGNALS = ("cls_attention", "received_attention", "cls_similarity", "keys", "values")
INSIDE_SIGNALS = (*ENCODER_SIGNALS, "pagerank")
"""Those that are read where tokens leave."""
STEPS = 30
"""Of a PageRank (arXiv 2305.17328: its first layers; it settles in fewer)."""


class Watch:
    """Records, at the blocks asked for, the signals that an encoder alone can give, of its patches (not its special tokens).

    Args:
        layers: the blocks of needs that name none.
        mask: where given, all tokens are recorded, keys and values with their heads apart, ``(B, H, n, d)``; it says under which
            mask attention is read.
        unpacked: from queries, keys or values as the kernel got them to those of the rows of the batch.
    """

    def __init__(
        self,
        stack: Stack,
        needs: Iterable[Need],
        clock: Clock,
        layers: tuple[int, ...] = (),
        mask: Callable[[taps.Call], Tensor | None] | None = None,
        unpacked: Callable[[Tensor], Tensor] = lambda x: x,
    ):
        self.stack, self.clock, self.mask, self.unpacked = stack, clock, mask, unpacked
        self.seen: Heard | None = None  # only while somebody listens
        self._wanted: dict[int, dict[str, list[int]]] = {}
        for need in needs:
            for name in self.names(need):
                for asked in need.layers or layers:
                    block = stack.layer(need.scaled(asked, len(stack.layers)))
                    if stack.attentions[block] is None:
                        if mask is not None and "features" in need.instead:
                            continue  # they stand in
                        raise ValueError(
                            f"block {block} of {type(stack.root).__name__} has no attention to read {name} from; use a method "
                            "that reads features only, such as 'divprune'"
                        )
                    self._wanted.setdefault(block, {}).setdefault(name, []).append(asked)

    def names(self, need: Need) -> list[str]:
        """What is recorded for a need: the first of it and its stand-ins that this encoder has."""
        for name in (need.name, *need.instead):
            if name in (ENCODER_SIGNALS if self.mask is None else INSIDE_SIGNALS) and (
                not name.startswith("cls_") or self.stack.cls
            ):
                return [name]
        return []

    @property
    def reads(self) -> bool:
        """Whether there is anything to record."""
        return bool(self._wanted)

    @property
    def blocks(self) -> tuple[int, ...]:
        """The blocks that are read."""
        return tuple(self._wanted)

    def wanted(self, layer: int | None = None) -> set[str]:
        """What is to be recorded at a block; at any, for None."""
        return {n for at, names in self._wanted.items() if layer in (None, at) for n in names}

    def attach(self) -> list[Detach]:
        return [self._tap(layer) for layer in self._wanted]

    def _tap(self, layer: int) -> Detach:
        module = self.stack.attentions[layer]
        assert module is not None
        return taps.attach(module, observe=partial(self.note, layer))

    def note(self, layer: int, call: taps.Call) -> None:
        """The attention of a block was called; where somebody listens, what is wanted of it is recorded."""
        if self.seen is None:
            return
        with self.clock, torch.no_grad():
            for name, asked in self._wanted.get(layer, {}).items():
                value = self._read(name, call)
                for index in asked:
                    self.seen.setdefault(name, {}).setdefault(index, []).append(value)

    def _read(self, name: str, call: taps.Call) -> Tensor:
        first = self.stack.specials if self.mask is None else 0
        if name in ("keys", "values"):
            x = self.unpacked(call.key if name == "keys" else call.value)
            return x if self.mask is not None else x[:, :, first:].transpose(1, 2).flatten(2)
        mask = call.mask if self.mask is None else self.mask(call)
        if name == "cls_similarity":
            value = self.unpacked(call.value)
            return rows.attend(value[:, :, :1], value, 1.0, _first(mask))[:, :, 0, first:]
        query, key = self.unpacked(call.query), self.unpacked(call.key)
        if name == "cls_attention":
            return rows.attend(query[:, :, :1], key, call.scale, _first(mask))[:, :, 0, first:]
        if name == "received_attention":
            return rows.received(query, key, call.scale, mask)[..., first:]
        return _settled(query, key, call.scale, mask)[..., first:]


def _settled(query: Tensor, key: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    """Where attention comes to rest that all tokens hold alike at first, ``(B, H, n)``."""

    def attend(first: int, last: int) -> Tensor:
        part = mask if mask is None or mask.dim() < 4 or mask.shape[-2] == 1 else mask[..., first:last, :]
        return rows.attend(query[:, :, first:last], key, scale, part)

    return rows.spread(attend, key.new_full((len(key), key.shape[2]), 1 / key.shape[2], dtype=torch.float32), STEPS)


def _first(mask: Tensor | None) -> Tensor | None:
    """The row of the first query."""
    return mask if mask is None or mask.dim() < 4 else mask[..., :1, :]
