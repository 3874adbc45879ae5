"""Inceptive: what a text is read from where local patterns count, in the place of its CLS state."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Inceptive(nn.Module):
    """Token states ``(B, N, D)`` to one vector ``(B, D)``: convolutions of several widths, then attention-weighted pooling.

    Source: arXiv 2505.20496. Each branch is a 1-D convolution over the tokens with one kernel; together they are brought
    back to D and added to the states, and tokens are weighted by a learned score. Deviations: branches are ``channels``
    wide, not D / branches, so that the module stays small beside a small encoder; one score per token stands for the
    self-attention layer.

    Raises:
        ValueError: an even kernel, which has no middle, or none.
    """

    def __init__(self, width: int, kernels: Sequence[int] = (3, 5, 7), channels: int = 8):
        super().__init__()
        if not kernels or any(k < 1 or k % 2 == 0 for k in kernels):
            raise ValueError(f"kernels={tuple(kernels)}; each must be odd and at least 1")
        self.branches = nn.ModuleList([nn.Conv1d(width, channels, k, padding=k // 2) for k in kernels])
        self.back, self.norm = nn.Linear(channels * len(kernels), width), nn.LayerNorm(width)
        self.score = nn.Linear(width, 1)

    def forward(self, states: Tensor, real: Tensor) -> Tensor:
        # Padding must not reach real tokens through a kernel.
        x = (states * real[..., None].to(states.dtype)).transpose(1, 2)
        local = torch.cat([branch(x) for branch in self.branches], 1).relu().transpose(1, 2)
        x = self.norm(states + self.back(local))
        weight = self.score(x)[..., 0].masked_fill(~real, -torch.inf).softmax(1)
        return (weight[..., None] * x).sum(1)
