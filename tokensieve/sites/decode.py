"""Passes over a cache that holds fewer entries than the sequence has tokens."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tokensieve.sites import masks, positions, taps
from tokensieve.sites.cache import SievedLayer
from tokensieve.sites.stack import Stack


def adapt(language: Stack, index: int, hidden: Tensor, kwargs: dict[str, Any], ids: Tensor | None) -> dict[str, Any]:
    """A layer's arguments in a pass that brings ordinary tokens: the mask of the entries that are there, lowered ids.

    Args:
        ids: the position ids that the language model was given; None where the layer is told them.
    """
    cache = kwargs.get("past_key_values")
    source = language.sources[index]
    layer = cache.layers[source] if cache is not None and len(cache.layers) > source else None
    if not isinstance(layer, SievedLayer) or layer.columns is None:
        return kwargs
    mask: Any = kwargs.get("attention_mask")
    changed = dict(kwargs)
    if mask is not None or layer.holes:
        more = hidden.shape[1] if source == index else 0  # the layer that holds the keys has added them
        columns, width = layer.upcoming(more), layer.length + more
        mask = masks.attention(mask, None, columns, width, layer.holes, taps.kind(language.config), hidden)
    changed["attention_mask"] = layer.before(mask) if source == index else mask
    if layer.shift is not None:
        ids = kwargs["position_ids"] if ids is None else ids
        positions.lower(language.root, changed, ids, layer.shift, hidden)
    return changed
