"""The entropy of sign codes, exactly, by their factors: no table of all codes against all tokens."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus


def sign_entropy(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Entropy per sample and over the batch of codes whose b bits are independent given the sample, nats.

    A softmax over all 2^b sign vectors c of ``2 beta z . c`` is a product of bits with ``p(1) = sigmoid(4 beta z)``. The entropy
    of a sample is then a sum of b binary ones, and the mean distribution over all codes one product of two tables of half the
    bits, ``A.T @ B / T``: time T 2^b, memory 2^b + T 2^(b/2). Nothing is approximated, and nothing is clamped where it counts.

    Args:
        logits: ``(T, b)``, ``4 beta z``; T and b at least 1.

    Returns:
        two scalars: the mean entropy of the samples, and the entropy of their mean distribution.
    """
    yes, no = logsigmoid(logits), logsigmoid(-logits)
    each = (softplus(logits) - logits * logits.sigmoid()).sum(-1).mean()
    half = logits.shape[1] // 2
    mean = _joint(yes[:, :half], no[:, :half]).T @ _joint(yes[:, half:], no[:, half:]) / len(logits)
    tiny = torch.finfo(mean.dtype).tiny
    return each, -(mean * mean.clamp(min=tiny).log()).sum()


def _joint(yes: Tensor, no: Tensor) -> Tensor:
    """``(T, 2^b)``: probabilities of all combinations of independent bits, from logarithms ``(T, b)`` of those of each."""
    bits = yes.shape[1]
    codes = torch.arange(2**bits, device=yes.device)[:, None] >> torch.arange(bits, device=yes.device) & 1
    # Sums of negative numbers alone: nothing cancels, however sure a bit is.
    return torch.cat([yes, no], 1).matmul(torch.cat([codes, 1 - codes], 1).to(yes.dtype).T).exp()
