"""The entropy of sign codes, exactly, by their factors: no table of all codes against all tokens."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus


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
    p = logits.sigmoid()
    each = (softplus(logits) - logits * p).sum(-1).mean()
    both = torch.stack([(-logits).sigmoid(), p], dim=1)  # 1 - p would round to 0 where p is nearly 1
    half = logits.shape[1] // 2
    mean = _joint(both[..., :half]).T @ _joint(both[..., half:]) / len(logits)
    tiny = torch.finfo(mean.dtype).tiny
    return each, -(mean * mean.clamp(min=tiny).log()).sum()


def _joint(bits: Tensor) -> Tensor:
    """``(T, 2^b)``: probabilities of all combinations of independent bits ``(T, 2, b)``; of none, 1."""
    out = bits.new_ones(len(bits), 1)
    for i in range(bits.shape[2]):
        out = (out[:, :, None] * bits[:, None, :, i]).flatten(1)
    return out
