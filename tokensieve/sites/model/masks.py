"""Masks, rotary positions and other per-token arguments, gathered to the tokens that are still there."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

from tokensieve.sites.model import compatibility


def gather(x: Tensor, index: Tensor, dim: int) -> Tensor:
    """``x`` at ``index`` (``(B, m)`` long, negative = padding, read from 0) along a token dimension; dimension 0 may be 1."""
    shape = [1] * x.dim()
    shape[0], shape[dim] = index.shape
    size = list(x.shape)
    size[0], size[dim] = index.shape
    if x.shape[0] != index.shape[0]:
        x = x.expand(index.shape[0], *x.shape[1:])
    return x.gather(dim, index.clamp(min=0).reshape(shape).expand(size))


def gather_ids(ids: Tensor, index: Tensor) -> Tensor:
    """Position ids ``(..., B, n)`` at ``index``, ``(B, m)`` long."""
    return ids.gather(-1, index.clamp(min=0).expand(*ids.shape[:-1], -1))


Mask = Tensor | dict[str, Any] | None


def attention(
    mask: Mask, rows: Tensor | None, columns: Tensor, width: int, holes: bool, kind: str, like: Tensor
) -> Mask:
    """The attention mask of the tokens that are there; runs in every layer, and never waits for the device.

    Args:
        mask: what the model built: None (plain causal), ``(B, kv)`` (flash), ``(B, 1, q, kv)`` bool or additive, or a dict of
            such by layer type. A mask of a sliding window may hold the last columns only.
        rows: ``(B, q')`` which of the mask's queries remain; None keeps all.
        columns: ``(B, kv')`` which columns the keys are, ascending, the queries' own last; -1 at padding.
        width: the columns of the whole sequence so far.
        holes: whether there is such padding.
        kind: the attention implementation ("sdpa", "eager", "flash_attention_2", ...).
        like: hidden states of the queries, for length, dtype and device.
    """
    if isinstance(mask, dict):
        return {name: attention(one, rows, columns, width, holes, kind, like) for name, one in mask.items()}
    if mask is None:
        return causal(columns, like.shape[-2], kind, like.dtype) if holes else None
    cut = width - mask.shape[-1]
    if cut > 0:
        columns, holes = torch.where(columns >= cut, columns - cut, -1), True
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


def packed(language: nn.Module, x: Tensor, kwargs: dict[str, Any]) -> Tensor | None:
    """``(B, L)`` long: which of the sequences in its row each token belongs to, where several are packed into one.

    As the model tells it: position ids start anew, and there is neither a mask nor a cache.

    Args:
        x: ``(B, L, D)`` embeddings; kwargs: what the language model is called with.

    Raises:
        ValueError: under flash attention, which is told the borders by position ids without gaps.
    """
    config: Any = language.config
    ids = _text_ids(language, kwargs.get("position_ids"))
    caches, cache = kwargs.get("use_cache"), compatibility.cache_of(kwargs)
    if caches is None:
        caches = getattr(config, "use_cache", False)
    if language.training and getattr(language, "gradient_checkpointing", False):
        caches = False
    if ids is None or caches or cache is not None or kwargs.get("attention_mask") is not None:
        return None
    found = compatibility.find_packed_sequence_indices(ids.expand(len(x), -1))
    if found is not None and "flash" in str(config._attn_implementation):
        raise ValueError(
            f"position_ids start anew {int(found.max())} times in a row; under flash attention the borders of packed prompts get "
            "lost when tokens leave: load the model with attn_implementation='sdpa', or pass one prompt a row"
        )
    return found


def _text_ids(language: nn.Module, ids: Tensor | None) -> Tensor | None:
    """``(B, L)``: the position ids that a model tells sequences apart by; None where it does not."""
    config: Any = language.config
    if ids is None or ids.dim() == 2:
        return None if "mrope_section" in (getattr(config, "rope_parameters", None) or {}) else ids
    return ids[0] if len(ids) == 4 else None


def windowed(language: nn.Module, x: Tensor, kwargs: dict[str, Any], past: int, sequence: Tensor | None) -> Mask:
    """The mask that a language model is given; where its layers see a window, or rows hold several sequences, the masks it would
    make of that, since windows are counted in tokens of the prompt, and sequences told apart by their position ids.

    Args:
        x: ``(B, L, D)`` embeddings of the whole prompt; past: tokens in the cache.
        sequence: what :func:`packed` says.

    Raises:
        ValueError: a window under flash attention, which counts the tokens it is given.
    """
    given = kwargs.get("attention_mask")
    ready = isinstance(given, dict) or (isinstance(given, Tensor) and given.dim() == 4)
    size = window(language)
    config: Any = language.config
    if sequence is not None:
        ids = _text_ids(language, kwargs["position_ids"])
        return compatibility.masks_of(config, x, None, None, ids)
    if ready or size is None or size >= past + x.shape[1]:
        return given
    if "flash" in str(config._attn_implementation):
        raise ValueError(
            f"{type(language).__name__} has layers that see a window of {size} tokens, which flash attention would count after "
            "tokens have left; load the model with attn_implementation='sdpa'"
        )
    if given is None:  # without one, masks are guessed from gaps in position ids
        given = torch.ones(len(x), past + x.shape[1], dtype=torch.long, device=x.device)
    return compatibility.masks_of(config, x, given, compatibility.cache_of(kwargs))


def entering(whole: Mask, index: Tensor, real: Tensor, x: Tensor, past: int, kind: str) -> Mask:
    """The mask of the tokens that enter the language model, from that of the whole prompt.

    Args:
        index: ``(B, l)`` long, their prompt positions, -1 at padding; real: ``(B, L)`` bool, False at the prompt's padding.
        x: ``(B, l, D)`` their embeddings.
    """
    before = torch.arange(past, device=x.device).expand(len(x), -1)
    if whole is not None and not (isinstance(whole, Tensor) and whole.dim() == 2):
        columns = torch.cat([before, torch.where(index >= 0, index + past, -1)], 1)
        return attention(whole, index, columns, past + real.shape[1], bool((index < 0).any()), kind, x)
    old = torch.ones_like(before) if whole is None else whole[:, : -real.shape[1]]
    here = real.gather(1, index.clamp(min=0)) & (index >= 0)
    return torch.cat([old, here.to(old.dtype)], 1)


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


def causal(columns: Tensor, query: int, kind: str, dtype: torch.dtype) -> Tensor:
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

    Knows rotary tables ``(B or 1, n, d)``, or by axis ``(3, B or 1, n, d)``, ids ``(B, n)``, M-RoPE ids ``(3 or 4, B, n)`` and
    inputs of layers ``(B, n, l, d)``.
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
    axes = x.dim() == 4 or (x.dim() == 3 and not x.is_floating_point())
    if axes and x.shape[2] == n and x.shape[1] in (1, index.shape[0]):
        return torch.stack([gather(part, index, 1) for part in x])
    return x
