"""Checks: what tensors must be to serve as signals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

TOKEN_AXIS = {
    "cls_attention": -1,
    "received_attention": -1,
    "cls_similarity": -1,
    "pagerank": -1,
    "text_attention": -1,
    "last_attention": -1,
    "keys": -2,
    "values": -2,
    "window_attention": -1,
    "accumulated_attention": -1,
    "expected_logits": -1,
    "probe_attention": -1,
    "visual": 1,
    "visual_share": -1,
    "token_ids": 1,
    "relevance": -1,
    "entropy": -1,
    "ranking": -1,
    "neurons": 1,
    "idf": 1,
    "stop": 1,
    "word": 1,
    "sizes": -1,
    "crop": 1,
    "head": 1,
    "frame": 1,
    "spot": 1,
}


def each(value: Any) -> list[Tensor]:
    if isinstance(value, Mapping):
        return list(value.values())
    return [value] if isinstance(value, Tensor) else []


def widened(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: widened(v) for k, v in value.items()}
    if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16):
        return value.float()
    return value


def expect(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(value.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(value.shape)}; expected {shape}")


def finite(name: str, value: Tensor, mask: Tensor | None) -> None:
    """Refuse NaN and infinity outside padding, naming the first place. One pass in the good case."""
    if not value.is_floating_point() or bool(torch.isfinite(value.sum())) or bool(torch.isfinite(value).all()):
        return
    bad = ~torch.isfinite(value)
    axis = TOKEN_AXIS.get(name, 1) % value.dim()
    if mask is not None and name not in ("text", "text_text", "text_neurons"):
        shape = [1] * value.dim()
        shape[0], shape[axis] = mask.shape
        bad &= mask.reshape(shape)
        if not bad.any():
            raise ValueError(
                f"{name} holds NaN or infinite values at padding; zero them (0 * NaN would leak into merges)"
            )
    where = bad.nonzero()[0].tolist()
    raise ValueError(
        f"{name} holds NaN or infinite values: first in row {where[0]}, token {where[axis]}; {int(bad.sum())} in all"
    )
