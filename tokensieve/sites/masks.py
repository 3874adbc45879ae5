"""Masks, rotary positions and other per-token arguments, gathered to the tokens that are still there."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn


def gather(x: Tensor, index: Tensor, dim: int) -> Tensor:
    """``x`` at ``index`` (``(B, m)`` long, negative = padding, read from 0) along a token dimension; dimension 0 may be 1."""
    shape = [1] * x.dim()
    shape[0], shape[dim] = index.shape
    size = list(x.shape)
    size[0], size[dim] = index.shape
    if x.shape[0] != index.shape[0]:
        x = x.expand(index.shape[0], *x.shape[1:])
    return x.gather(dim, index.clamp(min=0).reshape(shape).expand(size))


Mask = Tensor | dict[str, Any] | None


def attention(mask: Mask, rows: Tensor | None, columns: Tensor, holes: bool, kind: str, like: Tensor) -> Mask:
    """The attention mask of the tokens that are there.

    Args:
        mask: what the model built: None (plain causal), ``(B, kv)`` (flash), ``(B, 1, q, kv)`` bool or additive, or a dict of
            such by layer type. A mask of a sliding window may hold the last columns only.
        rows: ``(B, q')`` which of the mask's queries remain; None keeps all.
        columns: ``(B, kv')`` which columns the keys are, ascending, the queries' own last; -1 at padding.
        holes: whether there is such padding.
        kind: the attention implementation ("sdpa", "eager", "flash_attention_2", ...).
        like: hidden states of the queries, for length, dtype and device.
    """
    if isinstance(mask, dict):
        return {name: attention(one, rows, columns, holes, kind, like) for name, one in mask.items()}
    if mask is None:
        return _causal(columns, like.shape[1], kind, like.dtype) if holes else None
    cut = int(columns.max()) + 1 - mask.shape[-1]
    if cut > 0:
        columns = torch.where(columns >= cut, columns - cut, -1)
        holes = holes or bool((columns < 0).any())
    hole = columns < 0
    if mask.dim() == 2:
        out = gather(mask, columns, 1)
        return out.masked_fill(hole, 0) if holes else out
    if rows is not None:
        mask = gather(mask, rows, 2)
    out = gather(mask, columns, 3)
    if holes:
        out = out.masked_fill(hole[:, None, None], False if out.dtype == torch.bool else torch.finfo(out.dtype).min)
    return out


def window(language: nn.Module) -> int | None:
    """How many tokens back the narrowest layers of a language model see; None where all see everything."""
    config: Any = language.config
    kinds = getattr(config, "layer_types", None)
    narrow = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
    if kinds is not None:
        sizes = [getattr(config, narrow[kind], None) for kind in set(kinds) if kind in narrow]
    else:
        uses = hasattr(sys.modules[type(language).__module__], "create_sliding_window_causal_mask")
        sizes = [getattr(config, "sliding_window", None)] if uses else []
    return min((int(size) for size in sizes if size), default=None)


def _causal(columns: Tensor, query: int, kind: str, dtype: torch.dtype) -> Tensor:
    """A causal mask over ``columns`` for the last ``query`` of them, where the model saw no need for one."""
    real = columns >= 0
    if "flash" in kind:
        return real.long()
    allowed = real[:, None] & (columns[:, None] <= columns[:, -query:, None].clamp(min=0))
    allowed = allowed[:, None]
    if kind == "eager":
        return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(
            ~allowed, torch.finfo(dtype).min
        )
    return allowed


def arguments(kwargs: dict[str, Any], index: Tensor, n: int) -> dict[str, Any]:
    """A layer's keyword arguments with every per-token tensor but the mask gathered from ``n`` tokens to ``index``.

    Knows rotary tables ``(B or 1, n, d)``, ids ``(B, n)``, M-RoPE ids ``(3 or 4, B, n)`` and inputs of layers ``(B, n, l, d)``.
    """
    out = dict(kwargs)
    for name, value in kwargs.items():
        if isinstance(value, tuple) and value and all(isinstance(v, Tensor) for v in value):
            out[name] = tuple(_one(v, index, n) for v in value)
        elif isinstance(value, Tensor) and name != "attention_mask":
            out[name] = _one(value, index, n)
    return out


def _one(x: Tensor, index: Tensor, n: int) -> Tensor:
    if x.dim() == 2 and x.shape[1] == n and x.shape[0] in (1, index.shape[0]):
        return gather(x, index, 1)
    if x.dim() in (3, 4) and x.shape[1] == n and x.shape[0] in (1, index.shape[0]):
        return gather(x, index, 1)
    if x.dim() == 3 and x.shape[2] == n:
        return torch.stack([gather(part, index, 1) for part in x])
    return x
