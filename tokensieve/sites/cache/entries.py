"""Entries: what a cache method can read about the entries of one layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from tokensieve.core.needs import Need
from tokensieve.core.reduction import Reduction
from tokensieve.parts import select
from tokensieve.parts.attention import rows
from tokensieve.sites.cache.evicted_layer import EvictedLayer, alike
from tokensieve.sites.model.position_ids import apply_rope, rotary, tables_of, uses_rope
from tokensieve.sites.model.taps import Call

CACHE_SIGNALS = (
    "window_attention", "accumulated_attention", "expected_logits", "probe_attention", "visual", "visual_share",
    "token_ids", "keys", "values", "features",
)  # fmt: skip


def laid(x: Tensor, unit: str, heads: int) -> Tensor:
    """``(B, H, ..., N)`` in the rows of a method's unit: ``(B G, H / G, ..., N)`` for "head", ``(B, H / G, ..., G N)`` for
    "entry", itself for "token"."""
    if unit == "token":
        return x
    x = x.unflatten(1, (heads, -1))
    return x.flatten(0, 1) if unit == "head" else x.movedim(1, -2).flatten(-2)


def vectors(x: Tensor, unit: str) -> Tensor:
    """Keys or values ``(B, G, N, d)`` likewise: ``(B G, N, d)``, ``(B, G N, d)`` or ``(B, N, G d)``."""
    return x.transpose(1, 2).flatten(2) if unit == "token" else x.flatten(0, 1) if unit == "head" else x.flatten(1, 2)


@dataclass(frozen=True)
class Entries:
    """The entries of one layer behind a pass.

    Attributes:
        keys, values: ``(B, G, N, d)``; columns: ``(B, G, N)`` long, -1 at padding of the layer.
        valid: ``(B, G, N)`` bool: neither that nor padding of the prompt.
        call: the attention call of the pass.
    """

    layer: EvictedLayer
    keys: Tensor
    values: Tensor
    columns: Tensor
    valid: Tensor
    call: Call

    @property
    def latent(self) -> bool:
        """Whether the model makes keys and values for more heads of what it caches (multi-head latent attention)."""
        return self.call.key.shape[1] != self.keys.shape[1]

    def _made(self, held: Tensor, made: Tensor) -> Tensor:
        """What is held; or what the model makes of it for all heads, side by side, ``(B, G, N, d)``."""
        return made.unflatten(1, (held.shape[1], -1)).transpose(2, 3).flatten(3) if self.latent else held

    @property
    def attended(self) -> Tensor:
        """Keys as the kernel gets them, ``(B, G', N, d)``."""
        return self.call.key if self.latent else self.keys

    def features(self, unit: str) -> Tensor:
        return vectors(self._made(self.keys, self.call.key), unit)

    def attention(self, query: Tensor, columns: Tensor) -> Tensor:
        """Rows of attention, ``(B, H, t, N)``, of queries ``(B, H, t, d)`` at columns ``(B, t)``."""
        own = self.columns
        allowed = self.valid[:, :, None] & (own[:, :, None] <= columns[:, None, :, None])
        shared = bool((own == own[:, :1]).all())
        each = allowed[:, :1] if shared else allowed.repeat_interleave(query.shape[1] // self.keys.shape[1], 1)
        return rows.attend(query, self.attended, self.call.scale, each)

    def window(self, count: int) -> Tensor:
        """``(B, H, W, N)``: attention of the last ``count`` queries (fewer, where there have been fewer)."""
        query = torch.cat([q for q, _ in self.layer.queries], 2)[:, :, -count:]
        columns = torch.cat([c for _, c in self.layer.queries], 1)[:, -count:]
        return self.attention(query, columns)

    def probed(self) -> Tensor:
        """``(B, H, N)``: mean attention from those of the probes that see each entry."""
        query = torch.cat([q for q, _ in self.layer.probes], 2)
        columns = torch.cat([c for _, c in self.layer.probes], 1)
        each = columns[:, None].expand(-1, self.columns.shape[1], -1).contiguous()
        # Columns rise but for padding, which nobody sees.
        at = torch.searchsorted(self.columns.cummax(2).values, each, right=True) - 1
        total = self.gathered(query, at.clamp(min=0), (columns >= 0).float())
        seen = columns.shape[1] - torch.searchsorted(each.sort(2).values, self.columns)
        return total / seen.clamp(min=1).repeat_interleave(query.shape[1] // seen.shape[1], 1)

    def gathered(self, query: Tensor, at: Tensor, weight: Tensor) -> Tensor:
        """``(B, H, N)``: attention that each entry gathers from queries ``(B, H, t, d)`` at places ``(B, G, t)`` among them."""
        heads = self.attended.shape[1]
        valid = None if bool(self.valid.all()) else self.valid.expand(-1, heads, -1)
        return rows.gathered(query, self.attended, self.call.scale, at.expand(-1, heads, -1), weight, valid)

    def shown(self) -> Tensor:
        """``(B, G, N)`` bool: the entries of visual tokens."""
        shown = self.layer.is_visual
        assert shown is not None
        inside = self.valid & (self.columns < shown.shape[1])
        at = torch.where(inside, self.columns, 0).flatten(1)
        return shown.gather(1, at).view_as(inside) & inside if shown.shape[1] else inside

    def read(
        self, needs: Sequence[Need], unit: str, language: nn.Module, hidden: Tensor, module: nn.Module
    ) -> dict[str, Any]:
        heads, out = self.keys.shape[1], dict[str, Any]()
        for need in needs:
            if need.name == "window_attention":
                out[need.name] = laid(self.window(need.window), unit, heads)
            elif need.name == "accumulated_attention":
                assert self.layer.accumulated_attention is not None
                out[need.name] = laid(self.layer.accumulated_attention, unit, heads)
            elif need.name == "expected_logits":
                out[need.name] = laid(self.expected(need.window, language, hidden, module), unit, heads)
            elif need.name == "probe_attention":
                out[need.name] = laid(self.probed(), unit, heads)
            elif need.name == "visual":
                shown = self.shown().float()
                out[need.name] = shown[:, 0] if unit == "token" else vectors(shown, unit)
            elif need.name == "visual_share":
                assert self.layer.shares is not None
                out[need.name] = laid(self.layer.shares, unit, heads)
            elif need.name == "token_ids":
                assert self.layer.token_ids is not None
                named = self.layer.token_ids
                out[need.name] = named[:, 0] if unit == "token" else vectors(named.expand(-1, heads, -1), unit)
            elif need.name == "values":
                out[need.name] = vectors(self._made(self.values, self.call.value), unit)
        return out

    def keep(self, step: Reduction, unit: str) -> None:
        """Hold what stays, and nothing else; merged keys at their mean length."""
        batch, heads, n = self.columns.shape
        kept, mask = step.kept, step.mask
        if unit == "token":
            kept, mask = (x.repeat_interleave(heads, 0) for x in (kept, mask))
        elif unit == "entry":
            chosen = torch.zeros(batch, heads * n, dtype=torch.bool, device=kept.device).scatter_(1, kept, True)
            kept, mask = select.compact(chosen.view(batch * heads, n))
        if not step.drops and unit != "head":
            raise ValueError(f"a method that merges entries needs the unit 'head'; this one has {unit!r}")
        at = kept.unflatten(0, (batch, heads))
        named = self.columns.masked_fill(~self.valid, -1).flatten(0, 1)
        places = named.gather(1, kept).masked_fill_(~mask, -1).unflatten(0, (batch, heads))

        def taken(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.expand(-1, heads, -1).gather(2, at)

        layer, keys, values = self.layer, self.keys, self.values
        layer.accumulated_attention, layer.token_ids, layer.shares = (
            taken(x) for x in (layer.accumulated_attention, layer.token_ids, layer.shares)
        )
        layer.token_ids = None if layer.token_ids is None else alike(layer.token_ids)
        if not step.drops:
            keys, values, lengths = (
                step.apply(x.flatten(0, 1)).unflatten(0, (batch, heads))
                for x in (keys, values, torch.linalg.vector_norm(keys, dim=-1, keepdim=True))
            )
            # The mean of keys that point apart is shorter than they are, and would draw less attention.
            keys = normalize(keys, dim=-1) * lengths
            at = torch.arange(keys.shape[2], device=keys.device).expand(batch, heads, -1)
        layer.keep(keys, values, at, places)

    def pack(self, step: Reduction, bits: tuple[int, int]) -> None:
        """Hold what stays in the first precision and all the rest in the second."""
        places, layer, call = self.columns.masked_fill(~self.valid, -1), self.layer, self.call
        if layer.packed is None:
            same = all(
                a.shape == b.shape and torch.equal(a, b)
                for a, b in zip((self.keys, self.values), (call.key, call.value), strict=True)
            )
            layer.bare = same and not call.terms and self.keys.shape[3] % 8 == 0
        self.layer.pack(self.keys, self.values, places, step.owner >= 0, bits)

    def expected(self, ahead: int, language: nn.Module, hidden: Tensor, module: nn.Module) -> Tensor:
        """``(B, H, N)``: log of the expected attention of normal queries at the next ``ahead`` positions."""
        assert self.layer.moments is not None
        number, total, square, last = self.layer.moments
        count = number.clamp(min=1)[:, None, None]
        mean = total / count
        size = mean.shape[-1]
        row, column = torch.triu_indices(size, size, device=square.device)
        whole = square.new_empty(*square.shape[:2], size, size)
        whole[..., row, column] = whole[..., column, row] = square
        spread = whole / count[..., None] - mean[..., None] * mean[..., None, :]
        if uses_rope(module, tables_of(language)):
            ids = last[:, None] + torch.arange(1, ahead + 1, device=last.device)
            kinds: Any = getattr(module.config, "layer_types", None)
            every = rotary(language, hidden, ids, kinds[module.layer_idx] if kinds else None)
            table = tuple(t.float().mean(1, keepdim=True) for t in every)
            mean = apply_rope(module, mean[:, :, None], table)[:, :, 0]
            spread = apply_rope(module, spread, table)
            spread = apply_rope(module, spread.transpose(2, 3), table)
        groups, scale = mean.shape[1] // self.attended.shape[1], self.call.scale
        keys = self.attended.float()
        logits = keys @ mean.unflatten(1, (-1, groups)).transpose(2, 3) * scale
        each = spread.unflatten(1, (-1, groups)).unbind(2)
        bend = torch.stack([((keys @ one) * keys).sum(-1) for one in each], 2) * (scale * scale / 2)
        return (logits.transpose(2, 3) + bend).flatten(1, 2)


def here(layer: EvictedLayer, call: Call, real: Tensor | None) -> Entries:
    """The entries of a layer behind a pass; real: ``(B, L)`` bool, False at the prompt's padding."""
    keys, values, columns = layer.entries()
    valid = columns >= 0
    if real is not None:
        at = columns.clamp(min=0).flatten(1)
        valid = valid & real.gather(1, at).view_as(valid)
    return Entries(layer, keys, values, columns, valid, call)
