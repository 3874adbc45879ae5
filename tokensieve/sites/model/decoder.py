"""Decoder: the language model whose cache entries leave, and which of its layers can lose any."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tokensieve.sites.model.blocks import Stack, stack_of
from tokensieve.sites.model.compatibility import (
    EMPTY,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionLayer,
    PreTrainedModel,
    check_hooks,
    layers_of,
)
from tokensieve.sites.model.structure import language_of

KINDS = {
    DynamicLayer: "full_attention",
    DynamicSlidingWindowLayer: "sliding_attention",
    LinearAttentionLayer: "linear_attention",
    # It attends to the keys of another layer, or has no attention.
    **dict.fromkeys((*EMPTY, type(None)), "dummy"),
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
    visual = getattr(config, "text_config", None) is not None
    owner: Any = language_of(model) if visual else getattr(model, "base_model", model)
    try:
        stack = stack_of(owner)
    except ValueError as error:
        known = [type(m).__name__ for m in owner.modules() if "Attention" in type(m).__name__]
        if not known:
            raise ValueError(f"{type(owner).__name__} has no attention, and no cache of keys and values") from error
        raise alone(owner, 0, known[0]) from error
    if not visual and not any(getattr(a, "is_causal", False) for a in stack.attentions):
        raise ValueError(
            f"{type(model).__name__}: layer 0 ({type(stack.attentions[0]).__name__}) does not say that it is causal, as a causal "
            "language model's do; the cache site takes no other"
        )
    # The innermost model around the layers: some are called past what stands around it.
    inner = [m for m in owner.modules() if isinstance(m, PreTrainedModel) and stack.layers[0] in m.modules()]
    stack = replace(stack, root=inner[-1]) if inner else stack
    check_hooks(stack.root, stack.attending)
    return stack


def alone(owner: nn.Module, index: int, kind: str) -> ValueError:
    """The error of a layer whose attention no tap sees."""
    return ValueError(
        f"{type(owner).__name__}: layer {index} is of kind {kind!r}, which computes attention by itself and not through "
        "transformers' attention interface; nothing can be read there, and its entries cannot leave"
    )


def full_layers(language: Stack) -> list[int]:
    """The layers of a language model that see every token; layers with a window or a state of one size are left alone.

    Raises:
        ValueError: a layer of another kind, or none that sees every token.
    """
    name, config = type(language.root).__name__, language.config
    kinds = layers_of(config)
    names = getattr(config, "layer_types", None) or [KINDS.get(type(k), type(k).__name__) for k in kinds]
    if len(kinds) < len(language.layers):
        raise ValueError(f"{name}: layer {len(kinds)} has no cache of its own; its entries cannot leave")
    if len(kinds) > len(language.layers):
        raise ValueError(
            f"{name}: its {len(language.layers)} layers run several times in a pass; their entries cannot leave"
        )
    for i, kind in enumerate(kinds):
        if type(kind) not in KINDS:
            raise ValueError(f"{name}: layer {i} is of kind {names[i]!r}, whose entries cannot leave the cache")
    causal = [getattr(a, "is_causal", False) for a in language.attentions]  # those beside them attend to images
    full = [i for i, kind in enumerate(kinds) if type(kind) is DynamicLayer and (causal[i] or not any(causal))]
    if not full:
        raise ValueError(
            f"{name}: its layers are of kind {' and '.join(sorted(set(names)))}; none sees every token, so none has to evict"
        )
    for i in full:
        attention = language.attentions[i] or language.layers[i]
        if "ALL_ATTENTION_FUNCTIONS" not in inspect.unwrap(type(attention).forward).__code__.co_names:
            raise alone(language.root, i, type(attention).__name__)
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
