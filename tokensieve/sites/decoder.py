"""Decoder: the language model whose cache entries leave, and which of its layers can lose any."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer

from tokensieve.sites.anatomy import language_of
from tokensieve.sites.stack import Stack, stack_of

KINDS = {
    DynamicLayer: "full_attention",
    DynamicSlidingWindowLayer: "sliding_attention",
    LinearAttentionLayer: "linear_attention",
}


def decoder(model: nn.Module) -> Stack:
    """The language model of a transformers model: a causal one, or the one inside a vision-language model.

    Raises:
        ValueError: it has none, or one with an encoder of its own.
    """
    config: Any = getattr(model, "config", None)
    if config is None:
        raise ValueError(f"{type(model).__name__} is not a transformers model (it has no config)")
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"{type(model).__name__} has an encoder and a decoder; the cache site takes decoder-only models"
        )
    if getattr(config, "text_config", None) is not None:
        return stack_of(language_of(model))
    owner: Any = getattr(model, "base_model", model)
    stack = stack_of(owner)
    if not any(getattr(a, "is_causal", False) for a in stack.attentions):
        raise ValueError(
            f"{type(model).__name__} is no causal language model; it has no cache that entries could leave"
        )
    return stack


def full_layers(language: Stack) -> list[int]:
    """The layers of a language model that see every token; layers with a window or a state of one size are left alone.

    Raises:
        ValueError: a layer of another kind, or none that sees every token.
    """
    name, config = type(language.root).__name__, language.config
    kinds = DynamicCache(config=config).layers
    names = getattr(config, "layer_types", None) or [KINDS.get(type(k), type(k).__name__) for k in kinds]
    if len(kinds) < len(language.layers):
        raise ValueError(f"{name}: layer {len(kinds)} has no cache of its own; its entries cannot leave")
    for i, kind in enumerate(kinds):
        if type(kind) not in KINDS:
            raise ValueError(f"{name}: layer {i} is of kind {names[i]!r}, whose entries cannot leave the cache")
    full = [i for i, kind in enumerate(kinds) if type(kind) is DynamicLayer]
    if not full:
        raise ValueError(
            f"{name}: layer 0 is of kind {names[0]!r}, as are all others; none sees every token, so none has to evict"
        )
    return full


def padding(mask: Any, length: int) -> Tensor | None:
    """``(B, length)`` bool, False at padding, from the mask that a language model is given; None where there is none."""
    if isinstance(mask, dict):
        mask = mask.get("full_attention")
    if not isinstance(mask, Tensor):
        return None
    if mask.dim() == 4:  # the last query sees whatever is real
        mask = mask[:, 0, -1] if mask.dtype == torch.bool else mask[:, 0, -1] > torch.finfo(mask.dtype).min / 2
    real = mask[:, :length].bool()
    return None if bool(real.all()) else real
