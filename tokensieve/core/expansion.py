"""Expansion: how tokens come back from fewer slots, as mixes of several, where a copy of their own slot is not meant."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, pad


@dataclass(frozen=True, eq=False)
class Expansion:
    """For each of N source tokens the k slots that it is mixed from.

    Attributes:
        near: ``(B, N, k)`` long, slots.
        share: ``(B, N, k)`` float, how much of each; they sum to 1, or are all 0 for a token that was dropped.
    """

    near: Tensor
    share: Tensor

    @classmethod
    def of(cls, near: Tensor | None, share: Tensor | None) -> Expansion | None:
        """None where they are not given."""
        return None if near is None or share is None else cls(near, share)

    @classmethod
    def copying(cls, owner: Tensor) -> Expansion:
        """The one slot of each token, ``(B, N)`` long; -1 where it was dropped."""
        return cls(owner.clamp(min=0)[..., None], (owner >= 0).float()[..., None])

    @property
    def k(self) -> int:
        return self.near.shape[2]

    def apply(self, y: Tensor) -> Tensor:
        """``(B, M, D)`` -> ``(B, N, D)``, with no matrix of N x M and none of N x k x D."""
        wide = y.float() if y.dtype in (torch.float16, torch.bfloat16) else y
        start = torch.arange(len(y), device=y.device)[:, None, None] * y.shape[1]
        share = self.share.to(wide.dtype).flatten(0, 1)
        out = embedding_bag((self.near + start).flatten(0, 1), wide.flatten(0, 1), per_sample_weights=share, mode="sum")
        return out.view(*self.near.shape[:2], y.shape[2]).to(y.dtype)

    def then(self, other: Expansion) -> Expansion:
        """Back through ``other`` first: from its slots, the largest shares, as many as either mixes."""
        flat = self.near.flatten(1)[..., None].expand(-1, -1, other.k)
        near = other.near.gather(1, flat).view(*self.near.shape[:2], -1)
        share = (self.share[..., None] * other.share.gather(1, flat).view(*self.share.shape, -1)).flatten(2)
        share, order = share.topk(max(self.k, other.k), dim=2)
        return Expansion(near.gather(2, order), share / share.sum(2, keepdim=True).clamp(min=1e-12))

    @classmethod
    def stack(cls, parts: list[Expansion]) -> Expansion:
        """Rows of several, as one batch."""
        most = max(part.k for part in parts)
        padded = [[pad(t, (0, most - part.k)) for t in (part.near, part.share)] for part in parts]
        return cls(*(torch.cat(kind) for kind in zip(*padded, strict=True)))
