"""Arguments: what a block is called with for each token, or each pair of tokens, brought to the tokens that are there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokensieve.sites.encoder.state import EncoderReduction
from tokensieve.sites.model import masks, taps

PLACES = ("position_mask",)
"""Arguments that say where each token stands, and that no one gives where all are there."""


def gathered(given: dict[str, Any], index: dict[int, Tensor], heads: int, length: int) -> dict[str, Any]:
    """A block's arguments for the tokens that are there.

    Knows rotary tables ``(L, d)``, ``(B or 1, L, d)``, ``(B or 1, h, L, d)`` and pairs of such, ids ``(B or 1, L)``, and biases
    of pairs ``(..., L, L)``; and those of fewer tokens, where an earlier block made them.

    Args:
        given: by name, without the states; index: by a number of tokens, which of those each token is, ``(B, m)`` long.
        heads: of the attention, for biases that hold them in front.
        length: tokens of the whole sequence.
    """
    out: dict[str, Any] = {}
    for name, value in given.items():
        if isinstance(value, (tuple, list)) and value and all(isinstance(v, Tensor) for v in value):
            out[name] = type(value)(_table(v, index, length) for v in value)
        else:
            out[name] = _one(value, index, heads, length) if isinstance(value, Tensor) else value
    if index:
        for name in PLACES:
            if name in given and given[name] is None:
                out[name] = index[length]
    return out


def pairs(x: Tensor, index: dict[int, Tensor], heads: int) -> Tensor:
    """A bias of pairs, or of keys, ``(..., q or 1, k)`` of tokens that are no longer all there."""
    if x.shape[-1] not in index:
        return x
    columns, both = index[x.shape[-1]], x.shape[-2] == x.shape[-1]
    batch, lead = len(columns), x.shape[:-2]
    if x.dim() == 3 and lead[0] not in (1, batch):
        x = x.view(batch, heads, *x.shape[1:]) if lead[0] == batch * heads else x[None]
    x = x[:, None] if x.dim() == 3 else x
    out = masks.gather(x, columns, 3)
    out = masks.gather(out, columns, 2) if both else out
    if len(lead) == 1:
        return out.flatten(0, 1) if lead[0] == batch * heads else out[:, 0] if lead[0] in (1, batch) else out
    return out


def _one(x: Tensor, index: dict[int, Tensor], heads: int, length: int) -> Tensor:
    if x.dim() >= 3 and x.shape[-1] in index and x.shape[-2] in (1, x.shape[-1]):
        return pairs(x, index, heads)
    if x.dim() == 2 and x.shape[1] in index and (not x.is_floating_point() or x.shape[0] == len(index[x.shape[1]])):
        return masks.gather(x, index[x.shape[1]], 1)
    return _table(x, index, length) if x.is_floating_point() else x


def _table(x: Tensor, index: dict[int, Tensor], length: int) -> Tensor:
    """A rotary table; one of two dimensions that leaves special tokens out is read behind the heads."""
    if x.dim() < 2 or x.shape[-2] not in index:
        return x
    at = index[x.shape[-2]]
    if x.dim() == 2:
        out = masks.gather(x[None], at, 1)
        return out if len(x) == length else out[:, None]
    return masks.gather(x, at, x.dim() - 2) if x.shape[0] in (1, len(at)) else x


def mask(call: taps.Call, now: EncoderReduction) -> Tensor | None:
    """The mask of a call whose tokens are no longer all there: of these, with what is added to attention to each."""
    mask, bias = call.mask, now.bias
    queries, keys = (now.current.length,) * 2 if now.packing.rows else (call.query.shape[2], call.key.shape[2])
    if mask is not None and mask.shape[-1] != keys:
        mask = (
            pairs(mask, now.index, call.query.shape[1])
            if mask.dim() > 2
            else masks.gather(mask, now.index[mask.shape[1]], 1)
        )
    if bias is None:
        return mask
    if mask is not None and mask.dim() == 2:  # of keys alone, as flash attention takes it
        return mask.masked_fill(bias < 0, 0)
    bias = bias[:, None, None].to(call.query.dtype)
    if mask is None and call.causal:
        mask = torch.ones(queries, keys, dtype=torch.bool, device=bias.device).tril(keys - queries)[None, None]
    if mask is None:
        return bias
    return torch.where(mask, bias, torch.finfo(bias.dtype).min) if mask.dtype == torch.bool else mask + bias


def hidden(value: Tensor | None, now: EncoderReduction) -> Tensor | None:
    """A mask of the tokens that are there, for a block whose attention no tap sees: padding is hidden; sizes are not told.

    Raises:
        ValueError: there is padding, and no mask to hide it by.
    """
    assert now.shape is not None
    hole = now.shape.place < 0
    if not bool(hole.any()):
        return value
    if value is None:
        raise ValueError(
            "rows of a batch keep different numbers of tokens, and this encoder was given no attention_mask; pass one"
        )
    least = torch.finfo(value.dtype).min if value.is_floating_point() else 0
    return value.masked_fill(hole if value.dim() == 2 else hole[:, None, None], least)
