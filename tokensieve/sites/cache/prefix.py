"""Compressed prefixes: filled in chunks, saved, and read again by many questions."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokensieve.core.files import write
from tokensieve.parts.attention.pages import Pages
from tokensieve.sites.cache.evicted_layer import EvictedLayer
from tokensieve.sites.model import compatibility
from tokensieve.sites.model.clock import device
from tokensieve.sites.model.compatibility import EMPTY, SIEVABLE, BaseQuantizedLayer, Cache, DynamicCache
from tokensieve.sites.model.fingerprint import Fingerprint

FORMAT = "tokensieve.cache.2"
ASIDE = ("accumulated_attention", "token_ids", "is_visual", "shares")
"""What methods note of each entry."""
BEFORE = "tokensieve.cache.1"
"""The format before: what was noted stood under these names, and by query head."""
RENAMED = {"carried": "accumulated_attention", "named": "token_ids", "shown": "is_visual"}

MORE = "_tokensieve_more"
"""Set on a cache while more of its prompt is to come."""


@torch.no_grad()
def prefill(model: nn.Module, inputs: Any, chunk: int | None = None, cache: Cache | None = None) -> Cache:
    """Run a prompt through a model and return its cache; under a sieve with a cache stage, a compressed one.

    Args:
        inputs: ``input_ids`` and, with padding on the left, ``attention_mask``; or a tensor of ids.
        chunk: tokens per pass. Entries leave behind each, so that the whole prompt's cache is never held at once.
        cache: one to go on with; the mask then covers its tokens too.

    Example:
        >>> with ts.sieve(model, "snapkv", keep=0.25):  # doctest: +SKIP
        ...     cache = ts.prefill(model, prompt, chunk=4096)
    """
    given = {"input_ids": inputs} if isinstance(inputs, Tensor) else dict(inputs)
    ids = given.pop("input_ids")
    mask = given.pop("attention_mask", None)
    if chunk is not None and (isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1):
        raise ValueError(f"chunk={chunk!r}; it must be a number of tokens, at least 1, or None for one pass")
    if given and chunk is not None:
        raise ValueError(f"a prompt with {sorted(given)} goes through in one pass; leave out chunk={chunk}")
    config: Any = model.config
    cache = DynamicCache(config=config.get_text_config(decoder=True)) if cache is None else cache
    past, step = int(cache.get_seq_length()), chunk or ids.shape[1]
    for start in range(0, ids.shape[1], step):
        part = ids[:, start : start + step]
        upto = None if mask is None else mask[:, : past + start + part.shape[1]]
        places = None if upto is None else (upto.long().cumsum(1) - 1).clamp(min=0)[:, -part.shape[1] :]
        cache.__dict__[MORE] = start + step < ids.shape[1]
        extra = {} if given else {"position_ids": places}
        model(
            input_ids=part,
            attention_mask=upto,
            **compatibility.cache_argument(model, cache),
            use_cache=True,
            logits_to_keep=1,
            **extra,
            **given,
        )
    del cache.__dict__[MORE]
    for layer in cache.layers:
        if isinstance(layer, EvictedLayer):
            layer.settle()
    return cache


def save_cache(cache: Cache, path: str | Path) -> None:
    """Write a compressed cache to a safetensors file (to a temporary name first, then renamed).

    Raises:
        ValueError: no layer has seen a cache stage, or one holds a state of one size or is packed in few bits.
    """
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    facts: list[dict[str, Any]] = []
    models = {str(layer.model) for layer in cache.layers if isinstance(layer, EvictedLayer)}
    for i, layer in enumerate(cache.layers):
        if isinstance(layer, EvictedLayer) and (layer.packed is not None or isinstance(layer, BaseQuantizedLayer)):
            raise ValueError(f"layer {i} of the cache is packed in few bits; such caches are not saved")
        held: dict[str, Tensor | None] = {}
        if isinstance(layer, EvictedLayer):
            facts.append({"length": layer.length, "mark": layer.mark, "holes": layer.holes})
            held = {name: getattr(layer, name) for name in ("keys", "values", "places", "columns", *ASIDE)}
            if layer.pages is not None:
                held |= {f"pages.{f.name}": getattr(layer.pages, f.name) for f in fields(layer.pages)}
        elif models and type(layer) in SIEVABLE and layer.is_initialized:
            facts.append({"length": int(layer.get_seq_length()), "plain": True})
            held = {"keys": layer.keys, "values": layer.values}
        elif models and isinstance(layer, EMPTY):
            facts.append({})
        else:
            raise ValueError(
                f"layer {i} of the cache is a {type(layer).__name__}; only caches from which a stage at site='cache' evicted are "
                "saved, and none that hold a state of one size"
            )
        tensors |= {f"{i}.{k}": v.contiguous() for k, v in held.items() if v is not None}
    meta = {"format": FORMAT, "model": " ".join(models), "layers": json.dumps(facts)}
    write(path, lambda part: save_file({k: v.clone() for k, v in tensors.items()}, part, metadata=meta))


def load_cache(path: str | Path, model: nn.Module) -> Cache:
    """Read what :func:`save_cache` wrote, for the model that filled it.

    Raises:
        ValueError: another kind of file, or another model.
    """
    from safetensors import safe_open

    from tokensieve.sites.model.decoder import decoder

    root = decoder(model).root
    with safe_open(path, "pt") as f:
        meta = f.metadata() or {}
        if meta.get("format") not in (FORMAT, BEFORE):
            raise ValueError(f"{path} is not a saved cache (format {meta.get('format')!r})")
        filled = Fingerprint(None, meta["model"])
        if not filled.fits(Fingerprint(root)):
            raise ValueError(
                f"{path} was filled by another model than this {type(model).__name__}; fill a new one with this model"
            )
        held = {k: f.get_tensor(k).to(device(root)) for k in f.keys()}  # noqa: SIM118 (a safetensors handle)
    config: Any = root.config
    cache = DynamicCache(config=config)
    for i, facts in enumerate(json.loads(meta["layers"])):
        own = {k.split(".", 1)[1]: v for k, v in held.items() if k.startswith(f"{i}.")}
        own = _before(own) if meta["format"] == BEFORE else own
        if not own:
            continue
        layer: Any = cache.layers[i] if facts.get("plain") else EvictedLayer()
        cache.layers[i] = layer
        layer.lazy_initialization(own["keys"], own["values"])
        layer.keys, layer.values = own["keys"], own["values"]
        if facts.get("plain"):
            layer.cumulative_length = facts["length"]  # read where a layer sees a window
            continue
        parts = {k.split(".", 1)[1]: v for k, v in own.items() if k.startswith("pages.")}
        layer.pages = Pages(**parts) if parts else None
        for name in ("places", "columns", *ASIDE):
            setattr(layer, name, own.get(name))
        layer.length, layer.mark, layer.holes = facts["length"], facts["mark"], facts["holes"]
        layer.model = filled
    return cache


def _before(own: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a layer of the format before holds, as it is held now: the mean over the query heads of each key's own."""
    own = {RENAMED.get(name, name): x for name, x in own.items()}
    noted = ("accumulated_attention", "shares")
    return own | {name: own[name].unflatten(1, (own["keys"].shape[1], -1)).mean(2) for name in noted if name in own}
