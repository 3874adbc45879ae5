"""Score: which tokens matter. Every function returns ``(B, N)``, higher is kept first."""

from __future__ import annotations

import torch
from torch import Tensor

from tokensieve.signals import Need, Signals


def attention(s: Signals, need: Need) -> Tensor:
    """Attention paid to each token, averaged over heads and over the layers of the need."""
    rows = [per_token(s.get(need, layer)[1]) for layer in need.layers or (None,)]
    return torch.stack(rows).mean(0) if len(rows) > 1 else rows[0]


def per_token(a: Tensor) -> Tensor:
    """``(B, N)`` from ``(B, N)`` or ``(B, heads, N)``: the mean over heads."""
    return a if a.dim() == 2 else a.mean(1)
