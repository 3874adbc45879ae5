"""Sparse: while a prompt is read, groups of queries read a few of the keys in front of them."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from tokensieve.core.stage import Stage
from tokensieve.parts import select
from tokensieve.sites.cache.cache_budgets import resolve_count
from tokensieve.sites.model import calls, checkpointing, taps
from tokensieve.sites.model.blocks import Stack
from tokensieve.sites.model.calls import Detach
from tokensieve.sites.model.clock import Clock
from tokensieve.sites.model.decoder import full_layers, padding
from tokensieve.sites.model.ledger import Ledger
from tokensieve.sites.model.trace import Trace


class SparseSite:
    """Computes the attention of prompts group by group; rows that fit into one group read all, and groups begin where they do."""

    def __init__(self, language: Stack, stage: Stage, clock: Clock, ledger: Ledger):
        self.language, self.stage, self.clock, self.ledger = language, stage, clock, ledger
        ledger.every += [] if stage.keep == 1.0 else [stage]
        ledger.models.append(language.root)
        full = full_layers(language)
        asked = full if stage.layers is None else sorted({language.layer(i) for i in stage.layers})
        if set(asked) - set(full):
            raise ValueError(f"layers={stage.layers}: layers that see every token are {full}")
        self.layers = asked
        resolve_count(stage.keep, torch.ones(1, dtype=torch.long))
        self.trace: Trace | None = None
        self._real: Tensor | None = None

    @property
    def stacks(self) -> list[Stack]:
        return [self.language]

    def attach(self) -> list[Detach]:
        if self.stage.whole:
            return []
        out = [calls.before(self.language.root, self._enter)]
        out += checkpointing.attach(self.language)
        for i in self.layers:
            attention = self.language.attentions[i]
            assert attention is not None
            out.append(taps.attach(attention, kernel=partial(self._kernel, i)))
        return out

    def _enter(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        x, past = self.language.begun(args, kwargs)
        length = past + x.shape[1]
        self._real = padding(kwargs.get("attention_mask"), length)
        if x.shape[1] > 1:
            self.trace = Trace([], list(range(len(x))), [float(length)] * len(self.language.layers))

    def _kernel(self, index: int, call: taps.Call, kwargs: dict[str, Any]) -> taps.Own | None:
        self.ledger.ran(self.stage)
        (batch, _, length, _), total = call.query.shape, call.key.shape[2]
        if length == 1 or total <= self.stage.cache_method.query_block_size:
            return None
        taps.refuse(kwargs, index, "groups of queries that read a few keys cannot")
        real = self._real
        real = torch.ones(batch, total, dtype=torch.bool, device=call.key.device) if real is None else real
        if real.shape[1] != total:
            raise ValueError(
                f"entries have left layer {index} of this cache; {self.stage.method.name} reads whole caches"
            )
        assert self.trace is not None
        return partial(self._attend, index, real, self._real is not None, self.trace)

    def _attend(self, index: int, real: Tensor, padded: bool, trace: Trace, call: taps.Call) -> Tensor:
        (batch, heads, length, _), total = call.query.shape, call.key.shape[2]
        size = self.stage.cache_method.query_block_size
        query, past, short = call.query, total - length, real.sum(1) <= size
        key, value = (x.repeat_interleave(heads // x.shape[1], 1) for x in (call.key, call.value))
        mask = call.mask if call.mask is not None and call.mask.dim() == 4 else None
        mask = None if mask is None else mask.expand(batch, -1, -1, -1)
        order, column = begun(real, past)
        if padded:
            query, real = along(query, order, 2), real.gather(1, column)
            key, value = along(key, column, 2), along(value, column, 2)
        out, read = [], torch.zeros((), device=real.device)
        for start in range(0, length, size):
            some = order[:, start : start + size]
            upto = past + start + some.shape[1]
            seen = None if mask is None else along(along(mask, some, 2), column[:, :upto], 3)
            front = query[:, :, start : start + size], key[:, :, :upto], value[:, :, :upto]
            found, count = self._group(*front, call.scale, real[:, :upto], seen, short)
            out.append(found)
            read += count * some.shape[1]
        trace.layer_tokens[index] = float(read / length)
        whole = torch.cat(out, 2)
        whole = along(whole, order.argsort(1), 2) if padded else whole
        return whole.transpose(1, 2).contiguous()

    def _group(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, real: Tensor, seen: Tensor | None, short: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Attention of one group, ``(B, H, g, d)``, and how many keys its middle query reads on average.

        Args:
            short: ``(B,)`` bool, rows that read all of them.
            seen: ``(B, 1, g, n)``, the model's own mask; None where order alone decides.
        """
        batch, heads, length, _ = query.shape
        front, own = key.shape[2] - length, torch.arange(length, device=query.device)
        with self.clock, torch.no_grad():
            worth = self.stage.cache_method.key_scores(query, key, scale, real).flatten(0, 1)
            held = real[:, :front].sum(1)
            count = torch.where(short, held, resolve_count(self.stage.keep, held)).repeat_interleave(heads)
            worth = worth.masked_fill((short[:, None] & real[:, :front]).repeat_interleave(heads, 0), torch.inf)
            kept, mask = select.compact(select.top(worth, count, worth >= 0))
            kept, mask = (x[:, :front].unflatten(0, (batch, heads)) for x in (kept, mask))
        near, far = (own <= own[:, None]) & real[:, None, None, front:], mask[:, :, None].expand(-1, -1, length, -1)
        if seen is not None:
            seen = seen if seen.dtype == torch.bool else seen > torch.finfo(seen.dtype).min / 2
            place = kept[:, :, None].expand(-1, -1, length, -1)
            near = seen[..., front:]
            far = far & seen[..., :front].expand(-1, heads, -1, -1).gather(3, place)
        # A row that sees nothing would be NaN.
        near = (near | (own == own[:, None])).expand(-1, heads, -1, -1)
        place = kept[..., None].expand(-1, -1, -1, key.shape[3])
        k, v = (torch.cat([x[:, :, :front].gather(2, place), x[:, :, front:]], 2) for x in (key, value))
        out = scaled_dot_product_attention(query, k, v, attn_mask=torch.cat([far, near], 3), scale=scale)
        return out, mask.sum(2).float().mean() + (length + 1) / 2


def begun(real: Tensor, past: int) -> tuple[Tensor, Tensor]:
    """The tokens of a pass, ``(B, q)`` long, with those in front that are padding behind all others; and all columns likewise,
    ``(B, N)`` long.

    Args:
        real: ``(B, N)`` bool, False at padding; past: how many of them were there before.
    """
    place = torch.arange(real.shape[1], device=real.device)
    order = (place[: len(place) - past] + real[:, past:].long().argmax(1, keepdim=True)) % (len(place) - past)
    return order, torch.cat([place[:past].expand(len(real), -1), past + order], 1)


def along(x: Tensor, place: Tensor, axis: int) -> Tensor:
    """What ``x``, ``(B, H, ...)``, holds at ``(B, m)`` along an axis."""
    shape = [1] * x.dim()
    shape[0], shape[axis] = place.shape
    return x.gather(axis, place.view(shape).expand(*x.shape[:axis], -1, *x.shape[axis + 1 :]))
