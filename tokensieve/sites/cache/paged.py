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
    groups = queries // heads
    rows = call.query.unflatten(1, (heads, groups)).flatten(0, 1)
    late_keys, late_values = call.key.flatten(0, 1), call.value.flatten(0, 1)
    if length > 1:
        out = by_row(rows, held, late_keys, late_values, call.scale, _bias(call, late))
    else:
        bias = None if call.mask is None else _bias(call, late)
        out = attend(rows.flatten(1, 2), held, late_keys, late_values, call.scale, bias)
    return out.reshape(batch, queries, length, -1).transpose(1, 2).contiguous()


def _bias(call: Call, late: int) -> Tensor:
    """``(R, q, late)``, additive: which of the late entries each query sees."""
    batch, heads, length, dtype = len(call.key), call.key.shape[1], call.query.shape[2], call.query.dtype
    mask = call.mask
    if mask is None or mask.dim() == 2:
        order = torch.arange(late, device=call.key.device)
        allowed = (order <= order[late - length :, None])[None, None]
        mask = allowed if mask is None else allowed & mask[:, None, None, -late:].bool()
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)
    return mask.expand(batch, heads, -1, -1).flatten(0, 1)


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
