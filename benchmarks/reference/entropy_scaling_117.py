"""Attention entropy scaling: attention over more tokens than in training is sharpened, over fewer it is flattened."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from tokensieve.parts.attention.rows import attend
from tokensieve.sites.diffusion.modules import attending


def factor(tokens: int, trained: int) -> float:
    """What the usual softmax scale ``d ** -0.5`` is multiplied by, for a model that was trained on ``trained`` tokens.

    Source: arXiv 2306.08645: the entropy of attention grows with the logarithm of the number of tokens, and a scale of
    ``sqrt(log(tokens) / log(trained) / d)`` counters that in the mean. No deviation.

    Raises:
        ValueError: fewer than two tokens, whose logarithm says nothing.
    """
    if tokens < 2 or trained < 2:
        raise ValueError(f"tokens={tokens}, trained={trained}; both must be at least 2")
    return math.sqrt(math.log(tokens) / math.log(trained))


@contextmanager
def scaled(denoiser: nn.Module, trained: int) -> Iterator[None]:
    """Self-attention of a denoiser of diffusers under the scale for the tokens that it meets: its queries carry the factor,
    behind their norm where they have one, so that any kernel takes part."""

    def scale(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        return out * factor(max(out.shape[1:-1]), trained)

    hooks = []
    for m in attending(denoiser).values():
        maker = getattr(m, "norm_q", None) or m.to_q
        hooks.append(maker.register_forward_hook(scale))  # type: ignore[union-attr, operator]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def entropy(query: Tensor, key: Tensor, scale: float, block: int = 512) -> float:
    """Mean entropy of attention rows in nats, from ``(B, H, N, d)``; in blocks of queries."""
    total = 0.0
    for part in query.split(block, 2):
        rows = attend(part, key, scale)
        total += float(-(rows * rows.clamp(min=1e-30).log()).sum())
    return total / math.prod(query.shape[:3])
