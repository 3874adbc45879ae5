"""Attention that no plain kernel computes: over entries in pages, and over such as are packed in few bits."""

from __future__ import annotations

import torch
from torch import Tensor

from tokensieve.parts.attention import packed
from tokensieve.parts.attention.pages import Pages, attend, by_row
from tokensieve.sites.cache.evicted_layer import EvictedLayer
from tokensieve.sites.model.taps import Call


def paged(held: Pages, call: Call) -> Tensor:
    """Attention over kept entries in pages and those that have come since: ``(B, q, H, d)``."""
    batch, queries, length, _ = call.query.shape
    heads, late = call.key.shape[1], call.key.shape[2]
    groups, dtype = queries // heads, call.query.dtype
    mask = call.mask
    if mask is None or mask.dim() == 2:
        order = torch.arange(late, device=call.key.device)
        allowed = (order <= order[late - length :, None])[None, None]
        mask = allowed if mask is None else allowed & mask[:, None, None, -late:].bool()
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)
    bias = mask.expand(batch, heads, -1, -1).flatten(0, 1)
    rows = call.query.unflatten(1, (heads, groups)).flatten(0, 1)
    late_keys, late_values = call.key.flatten(0, 1), call.value.flatten(0, 1)
    if length > 1:
        out = by_row(rows, held, late_keys, late_values, call.scale, bias)
    else:
        bias = bias.expand(-1, groups, -1)
        out = attend(rows.flatten(1, 2), held, held.real, late_keys, late_values, call.scale, bias)
    return out.reshape(batch, queries, length, -1).transpose(1, 2).contiguous()


def over_packed(layer: EvictedLayer, call: Call) -> Tensor:
    """Attention of one token over a layer's packed entries and those that have come since: ``(B, 1, H, d)``."""
    assert layer.packed is not None
    mask, late = call.mask, call.key.shape[2]
    if mask is not None:
        mask = mask[..., -late:] if mask.dim() == 4 else mask[:, None, None, -late:].bool()
        if mask.dtype == torch.bool:
            mask = torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, -torch.inf)
    out = packed.attend(call.query, layer.packed, layer.packed_real, call.key, call.value, call.scale, mask)
    return out.transpose(1, 2).contiguous()
