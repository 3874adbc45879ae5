"""Images: where the visual tokens of a batch of prompts lie."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tokensieve.parts import budget
from tokensieve.parts.budget import Keep

if TYPE_CHECKING:
    from tokensieve.sites.visual.layout import EncoderPass


class Images:
    """Where the visual tokens of a batch of prompts lie.

    Attributes:
        row: ``(I,)`` long, the batch row of each image.
        place: ``(I, n)`` long, the prompt position of each of its tokens; -1 at padding (images of different sizes).
        source: ``(I, n)`` long, the rank of each token among those that the encoder gave; None where that is not known.
        pictures: ``(I,)`` long, how many pictures each group holds.
        alone: ``(I,)`` bool: a picture of a prompt whose budget is smaller than the number of its pictures; it keeps one token.
        looks: the passes of the encoder that :attr:`source` counts through; empty where they are not known.
    """

    looks: tuple[EncoderPass, ...] = ()

    def __init__(self, row: Tensor, place: Tensor, source: Tensor | None, pictures: Tensor, alone: Tensor):
        self.row, self.place, self.source, self.pictures, self.alone = row, place, source, pictures, alone

    @property
    def mask(self) -> Tensor:
        return self.place >= 0

    @classmethod
    def of(
        cls,
        visual: Tensor,
        picture: Tensor,
        source: Tensor | None,
        shared: Sequence[Keep] = (),
        sequence: Tensor | None = None,
    ) -> Images:
        """Groups of visual tokens.

        Args:
            visual: ``(B, L)`` bool, with V True entries.
            picture: ``(V,)`` long, a label for each of them; where the label or the row changes, another picture begins.
            source: ``(V,)`` long, or None.
            shared: budgets per prompt; with any, the pictures of a prompt are one group, as long as each can keep a token.
            sequence: ``(B, L)`` long, which prompt of its row each token belongs to; None where rows hold one.
        """
        where = visual.nonzero()
        row = where[:, 0]
        new = _new(row)
        if sequence is not None:
            new |= _new(sequence[visual])
        picture = _count(new | _new(picture))
        group = of_prompt = _count(new)
        pictures = _held(group, picture)
        alone = torch.zeros_like(pictures, dtype=torch.bool)
        if not shared:
            group = picture
        else:
            prompts = visual[row[new]]
            if sequence is not None:
                prompts = prompts & (sequence[row[new]] == sequence[visual][new][:, None])
            least = torch.stack([_least(keep, prompts) for keep in shared]).amin(0)
            alone = least < pictures
            group = _count(new | (_new(picture) & alone[of_prompt]))
            if bool(alone.any()):
                warnings.warn(
                    f"keep={int(least[alone].min())} for the {int(pictures[alone].max())} images of a prompt: every image keeps "
                    "at least one token; give a budget of at least the number of images",
                    stacklevel=2,
                )
        sizes = group.bincount()
        start = sizes.cumsum(0) - sizes
        rank = torch.arange(len(group), device=group.device) - start[group]

        def lay(x: Tensor, empty: int) -> Tensor:
            out = x.new_full((len(sizes), int(sizes.max())), empty)
            out[group, rank] = x
            return out

        alone = alone[of_prompt[start]]
        return cls(
            row[start], lay(where[:, 1], -1), None if source is None else lay(source, 0), _held(group, picture), alone
        )

    def lay(self, rows: Tensor) -> Tensor:
        """Rows of visual tokens in the order of :attr:`source`, ``(V, ...)`` -> ``(I, n, ...)``, zero at padding."""
        assert self.source is not None
        return rows[self.source] * self.mask.reshape(*self.mask.shape, *[1] * (rows.dim() - 1))


def _new(x: Tensor) -> Tensor:
    """``(V,)`` bool: where an entry differs from the one before; True at the first."""
    return torch.cat([x.new_ones(1, dtype=torch.bool), x[1:] != x[:-1]])


def _count(new: Tensor) -> Tensor:
    """``(V,)`` bool, where something begins -> ``(V,)`` long, its number."""
    return new.long().cumsum(0) - 1


def _held(group: Tensor, picture: Tensor) -> Tensor:
    """``(G,)`` long: how many pictures each group holds."""
    return group[_new(picture)].bincount()


def _least(keep: Keep, visual: Tensor) -> Tensor:
    """``(B,)`` long: the tokens that a budget leaves each prompt; budgets over layers are never too small here."""
    if keep.layered:
        return visual.sum(1)
    return budget.counts(keep, visual)
