"""Sets: tokens whose order does not count, as exact counts of codes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tokensieve.codec.quantizers.nearest import VQ
from tokensieve.codec.registry import register_quantizer


@register_quantizer("set", kind="VQ", systems=(168,))
class TokenSet(VQ):
    """A vector quantizer whose tokens are a set: a row is how often each code occurs (TokenSet, arXiv 2503.16425).

    :meth:`counts` and :meth:`members` are exact inverses, but for the order. Options are those of ``vq``; the decoder must not
    care for the order of its tokens.
    """

    def counts(self, indices: Tensor) -> Tensor:
        """``(B, codes)`` int64: how often each code occurs in a row of indices ``(B, N, 1)``; -1 is no token."""
        self.check_indices(indices)
        held = indices[..., 0]
        out = held.new_zeros(len(held), self.codes)
        return out.scatter_add_(1, held.clamp(min=0), (held >= 0).long())

    def members(self, counts: Tensor) -> Tensor:
        """``(B, N, 1)`` int64: a row's codes in ascending order, -1 behind the last; N is the largest total.

        Raises:
            ValueError: a count below 0, or another shape or dtype.
        """
        if (
            counts.dim() != 2
            or counts.shape[1] != self.codes
            or counts.dtype != torch.int64
            or bool((counts < 0).any())
        ):
            raise ValueError(
                f"counts of dtype {counts.dtype} and shape {tuple(counts.shape)}; int64 (B, {self.codes}), none below 0"
            )
        rows = [torch.arange(self.codes, device=counts.device).repeat_interleave(row) for row in counts]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)[..., None]

    def set_bits(self, tokens: int) -> float:
        """Bits of a set of so many tokens, stored plainly: the log of how many there are; below ``tokens * bits``."""
        ways = math.lgamma(self.codes + tokens) - math.lgamma(tokens + 1) - math.lgamma(self.codes)
        return ways / math.log(2)
