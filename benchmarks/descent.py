"""Descent: how the small models of benchmarks and checks are trained, by AdamW under one cycle of the rate."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


@torch.enable_grad()
def descend(
    parameters: Iterable[nn.Parameter], loss: Callable[[int], Tensor], steps: int, rate: float, decay: float = 0.01,
    clip: float | None = None, warmup: float = 0.3, over: Iterable[int] | None = None,
) -> None:  # fmt: skip
    """Train parameters in place.

    Args:
        loss: of the step of that number, a scalar.
        rate: the highest learning rate; decay: of weights; clip: the norm of all gradients at most, None for any.
        warmup: the share of the steps in which the rate rises.
        over: the numbers of the steps, where they are shown as they go.
    """
    own = list(parameters)
    optimizer = torch.optim.AdamW(own, lr=rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=warmup)
    for step in range(steps) if over is None else over:
        optimizer.zero_grad()
        loss(step).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(own, clip)
        optimizer.step()
        schedule.step()
