"""LongMamba: a selective state space layer, and a filter by which its long memories take in no more than they learned to hold."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad, silu, softplus


class SelectiveSSM(nn.Module):
    """The layer of Mamba: channels that each forget and take in by a step size of their own, token by token.

    Source: arXiv 2312.00752; written out here since the models of transformers compute the step sizes where no hook can change
    them. The recurrence runs in log2(T) rounds over whole tensors, memory B x T x E x ``state``.

    Args:
        dim: D; expand: E = expand * D channels; state: numbers that each holds; kernel: of the convolution in front.
        rank: of the projection that step sizes come from; D / 16 by default.
    """

    def __init__(self, dim: int, expand: int = 2, state: int = 8, kernel: int = 4, rank: int | None = None):
        super().__init__()
        width, rank = expand * dim, max(1, dim // 16) if rank is None else rank
        self.into, self.out = nn.Linear(dim, 2 * width, bias=False), nn.Linear(width, dim, bias=False)
        self.near = nn.Conv1d(width, width, kernel, groups=width, padding=kernel - 1)
        self.read = nn.Linear(width, rank + 2 * state, bias=False)
        self.step = nn.Linear(rank, width)
        self.decay = nn.Parameter(torch.arange(1, state + 1).float().log().repeat(width, 1))
        self.through = nn.Parameter(torch.ones(width))
        self.sizes = (rank, state, state)
        with torch.no_grad():  # step sizes begin between 0.001 and 0.1
            start = torch.exp(torch.rand(width) * 4.6 - 6.9)
            self.step.bias.copy_(start + torch.log(-torch.expm1(-start)))

    @property
    def rates(self) -> Tensor:
        """``(E, state)``, negative: how fast each number decays."""
        return -self.decay.exp()

    def forward(self, x: Tensor, threshold: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """
        Args:
            x: ``(B, T, D)``; threshold: ``(E,)``: tokens whose step size is smaller leave a channel's state as it is.

        Returns:
            ``(B, T, D)`` and the step sizes, ``(B, T, E)``, before anything was left out.
        """
        x, gate = self.into(x).chunk(2, dim=2)
        x = silu(self.near(x.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2))
        step, write, read = self.read(x).split(self.sizes, dim=2)
        step = softplus(self.step(step))
        taken = step if threshold is None else torch.where(step >= threshold, step, 0.0)
        held = scan((taken[..., None] * self.rates).exp(), (taken * x)[..., None] * write[:, :, None])
        out = (held * read[:, :, None]).sum(3) + self.through * x
        return self.out(out * silu(gate)), step


def scan(keep: Tensor, add: Tensor) -> Tensor:
    """``h[t] = keep[t] * h[t - 1] + add[t]`` along the second dimension, from zero."""
    distance, n = 1, keep.shape[1]
    while distance < n:
        blank = [0, 0] * (keep.dim() - 2) + [distance, 0]
        before, factor = pad(add, blank)[:, :n], pad(keep, blank)[:, :n]
        add, keep = add + keep * before, keep * factor
        distance *= 2
    return add


def thresholds(step: Tensor, rates: Tensor, length: int, decay: float = 1e-3) -> Tensor:
    """``(E,)``: for every channel of long memory the step size below which tokens are to be skipped in a text of ``length``.

    A channel is of long memory where a text of the training length leaves more than ``decay`` of what came first, on
    average over its numbers. Of the longer text it takes in the largest step sizes, as many as add up to what it took in while
    it was trained; all others have threshold 0.

    Source: arXiv 2504.16053. As in its public code, the step sizes that a longer text will have are those of the training length,
    sorted and stretched, and thresholds are means over texts. Deviation: ``decay`` is ours for all layers, where the paper
    searches one for each model.

    Args:
        step: ``(S, T, E)``, step sizes on some texts of the training length T.
        rates: ``(E, state)``, negative.

    Raises:
        ValueError: a length below 1.
    """
    if length < 1:
        raise ValueError(f"length={length}; it must be a number of tokens, at least 1")
    total = step.sum(1)
    long = (total.mean(0)[:, None] * rates).exp().mean(1) > decay
    if length <= step.shape[1]:
        return torch.zeros_like(total[0])
    order = step.sort(dim=1, descending=True).values.transpose(1, 2)
    order = interpolate(order, size=length, mode="linear", align_corners=False)
    fits = (order.cumsum(2) <= total[..., None]).sum(2)
    last = order.gather(2, fits.clamp(max=length - 1)[..., None])[..., 0]
    return torch.where(long, last.mean(0), 0.0)
