"""Patches joined two by two in the midst of an encoder, by what their channels say together and beside their mean."""

from __future__ import annotations

from torch import Tensor, nn


class PatchMerge(nn.Module):
    """Each two by two patches of a grid ``(B, side * side, D)`` become one, ``(B, side * side / 4, D)``.

    Their channels come side by side (space to channel) and go through two layers; past these goes their mean, by no parameter,
    so that the blocks behind find states of the kind they know. The last layer begins at zero: at first it is the mean alone.

    Source: LaCo, arXiv 2507.02279. ``shortcut=False`` is its ablation, and pixel shuffle as it stands behind encoders.
    """

    def __init__(self, width: int, shortcut: bool = True):
        super().__init__()
        self.shortcut = shortcut
        self.norm = nn.LayerNorm(4 * width)
        self.inner, self.outer = nn.Linear(4 * width, 2 * width), nn.Linear(2 * width, width)
        if shortcut:
            nn.init.zeros_(self.outer.weight)
            nn.init.zeros_(self.outer.bias)

    def forward(self, x: Tensor) -> Tensor:
        side = round(x.shape[1] ** 0.5)
        four = x.unflatten(1, (side // 2, 2, side // 2, 2)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        joined = self.outer(nn.functional.gelu(self.inner(self.norm(four.flatten(2)))))
        return joined + four.mean(2) if self.shortcut else joined
