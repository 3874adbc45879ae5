"""Survivors: what a layer of the language model is called with, once visual tokens have left."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokensieve.sites.cache.sieved_layer import SievedLayer
from tokensieve.sites.model import compatibility, masks, position_ids, taps
from tokensieve.sites.model.blocks import Stack
from tokensieve.sites.model.fingerprint import Fingerprint
from tokensieve.sites.visual.token_stream import Stream


def arguments(
    language: Stack, stream: Stream, index: int, hidden: Tensor, kwargs: dict[str, Any], model: Fingerprint
) -> dict[str, Any]:
    """The layer's arguments for the tokens that are there; tells its cache layer which they are, and whose."""
    thinned = stream.thinned
    out = masks.arguments(kwargs, stream.entry, stream.width) if thinned else dict(kwargs)
    if thinned and stream.renumbered is not None:
        ids, out["position_embeddings"] = stream.renumbered
        if out.get("position_ids") is not None:
            out["position_ids"] = ids[0] if ids.dim() == 3 and out["position_ids"].dim() == 2 else ids
    cache = compatibility.cache_of(kwargs)
    columns, past = stream.entry, 0
    holes = thinned and stream.holes
    source = language.sources[index]
    if source != index and cache is not None:
        held = cache.layers[source]
        past, holes = held.length - stream.length, holes or held.holes
        columns = held.columns[:, : -stream.entry.shape[1]]
        columns = torch.cat([columns, torch.where(stream.entry >= 0, stream.entry + past, -1)], 1)
    if language.attentions[index] is None or source != index:
        cache = None  # its state is of one size, whatever has left; or it has none of its own
    if cache is not None:
        layer = SievedLayer.of(cache, index, hidden.shape[0], hidden.device)
        past, holes, layer.model = layer.length, holes or layer.holes, model
        assert layer.columns is not None
        columns = torch.cat([layer.columns, torch.where(stream.entry >= 0, stream.entry + past, -1)], 1)
        named = torch.where(stream.index >= 0, stream.index + past, -1)
        if layer.shift is not None:
            assert stream.ids is not None
            ids = stream.ids if not thinned else masks.gather_ids(stream.ids, stream.entry)
            position_ids.lower(language.root, out, ids, layer.shift, hidden)
        layer.expect(named, stream.length, stream.holes, stream.shift)
    if thinned or past:
        kind = taps.kind(language.config)
        whole = hidden.shape[1] == stream.entry.shape[1]  # some run their last layers on the last tokens only
        rows, width = stream.entry if thinned and whole else None, past + stream.width
        mask: Any = masks.attention(kwargs.get("attention_mask"), rows, columns, width, holes, kind, hidden)
        out["attention_mask"] = mask if cache is None else layer.before(mask)
    return out
