"""Temperature: a text encoder whose attention is sharper than it was trained, and meters of what length does to
embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, scaled_dot_product_attention

from tokensieve.sites.model import taps
from tokensieve.sites.model.structure import find


@contextmanager
def tempered(model: nn.Module, temperature: float) -> Iterator[None]:
    """Divide every attention logit of an encoder by ``temperature`` while the context is open (TempScale).

    Source: arXiv 2410.24200: longer texts' embeddings lie closer to each other, since attention over more tokens lets less of
    the high frequencies through; a temperature below 1 lets more through. Deviation: every layer has the same temperature.

    Raises:
        ValueError: a temperature that is not above 0, a model without attention that can be tapped, or one that is causal.
    """
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature={temperature}; it must be above 0 (the paper's is 0.9, 1 changes nothing)")
    stack = find(model).vision
    modules = [m for m in (() if stack is None else stack.attentions) if m is not None]
    if not modules:
        raise ValueError(f"{type(model).__name__} is no encoder whose attention can be tapped")
    undo: list[Callable[[], None]] = []
    try:
        for i, module in enumerate(modules):
            undo.append(taps.attach(module, kernel=partial(_kernel, i, temperature)))
        yield
    finally:
        for back in undo:
            back()


def _kernel(index: int, temperature: float, call: taps.Call, kwargs: dict[str, Any]) -> taps.Own:
    taps.refuse(kwargs, index, "a temperature would leave out")
    if call.causal:
        raise ValueError(f"layer {index} is causal; a temperature is for encoders, which see all tokens")
    return partial(_attend, call.scale / temperature, float(kwargs.get("dropout") or 0.0))


def _attend(scale: float, dropout: float, call: taps.Call) -> Tensor:
    mask = call.mask
    if mask is not None and mask.dim() == 2:
        mask = mask.bool()[:, None, None]
    out = scaled_dot_product_attention(
        call.query, call.key, call.value, mask, dropout,
        scale=scale, enable_gqa=call.query.shape[1] != call.key.shape[1],
    )  # fmt: skip
    return out.transpose(1, 2)


def high_frequency(states: Tensor, mask: Tensor) -> Tensor:
    """``(B,)``: the share of the energy of token states ``(B, N, D)`` that is not in the mean of a text's real tokens."""
    real = mask[..., None].to(states.dtype)
    x = states * real
    mean = x.sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp(min=1)
    return ((states - mean) * real).square().sum((1, 2)) / x.square().sum((1, 2)).clamp(min=1e-12)


def likeness(vectors: Tensor, bins: Tensor) -> Tensor:
    """``(bins,)``: the mean cosine of the pairs of vectors ``(n, d)`` whose texts are of one bin of lengths, ``(n,)`` long
    from 0.

    Raises:
        ValueError: a bin of fewer than two texts, which has no pairs.
    """
    unit = normalize(vectors.float(), dim=-1)
    count = torch.bincount(bins)
    if int(count.min()) < 2:
        raise ValueError(f"bin {int(count.argmin())} holds {int(count.min())} texts; pairs need at least 2")
    total = unit.new_zeros(len(count), unit.shape[1]).index_add_(0, bins, unit)
    return (total.square().sum(1) - count) / (count * (count - 1))


def slope(values: Tensor) -> float:
    """By how much values rise from one bin to the next, by least squares."""
    step = torch.arange(len(values), dtype=values.dtype)
    step = step - step.mean()
    return float((step * values).sum() / step.square().sum())
