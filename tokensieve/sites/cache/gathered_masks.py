"""Passes over a cache that holds fewer entries than the sequence has tokens."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tokensieve.sites.cache.evicted_layer import EvictedLayer
from tokensieve.sites.cache.sieved_layer import SievedLayer
from tokensieve.sites.model import compatibility, guards, masks, position_ids, taps
from tokensieve.sites.model.blocks import Stack
from tokensieve.sites.model.fingerprint import Fingerprint


def begin(cache: Any, model: Fingerprint, own: Sequence[int]) -> None:
    """A pass of a model over a cache begins.

    Args:
        own: the layers that every pass of the model reaches.

    Raises:
        ValueError: the cache is another model's.
        RuntimeError: the pass before broke off.
    """
    layers = [] if cache is None else cache.layers
    for i, layer in enumerate(layers):
        if isinstance(layer, SievedLayer):
            layer.begin()
            if layer.model is not None and not layer.model.fits(model):
                raise guards.refusal("other model", layer=i)
    there = [layers[i] for i in own if i < len(layers)]
    held = [x for x in there if isinstance(x, (SievedLayer, *compatibility.SIEVABLE)) and x.is_initialized]
    seen = [int(x.get_seq_length()) for x in held]  # where a draft was taken back, some releases give a tensor
    if any(isinstance(x, SievedLayer) for x in there) and len(set(seen)) > 1:
        raise guards.refusal("broken", least=min(seen), most=max(seen))


def adapt(language: Stack, index: int, hidden: Tensor, kwargs: dict[str, Any], ids: Tensor | None) -> dict[str, Any]:
    """A layer's arguments in a pass that brings ordinary tokens: the mask of the entries that are there, lowered ids.

    Args:
        ids: the position ids that the language model was given; None where the layer is told them.
    """
    cache = compatibility.cache_of(kwargs)
    source = language.sources[index]
    layer = cache.layers[source] if cache is not None and len(cache.layers) > source else None
    if not isinstance(layer, SievedLayer) or layer.columns is None:
        return kwargs
    mask: Any = kwargs.get("attention_mask")
    changed = dict(kwargs)
    if source == index:
        layer.ordinary()
    if mask is not None or layer.holes:
        more = hidden.shape[-2] if source == index else 0  # the layer that holds the keys has added them
        columns, width = layer.upcoming(more), layer.length + more
        mask = masks.attention(mask, None, columns, width, layer.holes, taps.kind(language.config), hidden)
    changed["attention_mask"] = layer.before(mask) if source == index else mask
    if layer.shift is not None:
        ids = kwargs["position_ids"] if ids is None else ids
        position_ids.lower(language.root, changed, ids, layer.shift, hidden)
    return changed


def narrow(language: Stack, cache: Any, mask: Any, real: Tensor | None, query: int) -> Tensor | None:
    """The mask of a pass's last columns, those of all entries that have come since the others left: the model's own would be as
    wide as the whole sequence. None where the model has to make it.

    Args:
        mask: what the language model was given; real: ``(B, L)`` bool, False at its padding; None for none.
        query: tokens of the pass.
    """
    root, kind = language.root, taps.kind(language.config)
    layers = [cache.layers[i] for i in set(language.sources)] if len(cache.layers) > max(language.sources) else []
    held = all(isinstance(layer, EvictedLayer) and layer.places.shape[2] for layer in layers)
    if not layers or not held or kind not in ("sdpa", "eager") or not _plain(root):
        return None
    if mask is not None and not (isinstance(mask, Tensor) and mask.dim() == 2):
        return None
    late = max(layer.columns.shape[1] for layer in layers) + query
    columns = torch.arange(late, device=layers[0].columns.device)[None]
    if real is not None:
        columns = torch.where(real[:, -late:], columns, -1)
    return masks.causal(columns, query, kind, next(root.parameters()).dtype)


def _plain(root: nn.Module) -> bool:
    """Whether a language model does nothing with the mask it is given but make one causal mask of it for all layers."""
    names = vars(sys.modules[type(root).__module__])
    return "create_causal_mask" in names and "build_alibi_tensor" not in names and masks.window(root) is None
