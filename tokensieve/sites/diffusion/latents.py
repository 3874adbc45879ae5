"""Latents: what a denoiser was called with, and how many tokens on which grid that makes in each of its modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

NAMES = ("sample", "hidden_states", "x", "image_latent", "latents")
"""What denoisers call their latents."""
IDS = ("img_ids", "image_ids", "position_ids")
"""Positions of latents that come as a row of tokens, ``(N, 3)``, ``(N, 4)`` or with a batch in front: time, row, column, and in
Flux 2 one more. Where a text stands in front, it has places there too."""
HALVINGS = 6
SIDES = (1, 2, 4, 8, 14, 16, 32)


@dataclass(frozen=True)
class Latents:
    """Latents of one call.

    Attributes:
        batch: rows; frames: of each, 1 for pictures.
        space: height and width of latents with channels in front; None where they come as a row of tokens.
        packed: the tokens of that row, 0 otherwise; grid: theirs, where it is known.
        main: tokens of a row in front of the first block, where the model's patches say so.
        halves: whether the batch is two equal halves, as classifier-free guidance makes it.
    """

    batch: int
    frames: int
    space: tuple[int, int] | None
    packed: int
    grid: tuple[int, int] | None
    main: int
    halves: bool
    patches: tuple[tuple[int, int], ...] = ()

    def of(self, n: int) -> tuple[bool, tuple[int, int] | None]:
        """Whether n tokens are those of the latents, and their grid: rows (of all frames) and columns."""
        if self.space is None:
            return n == self.packed, self.grid if n == self.packed else None
        high, wide = self.space
        for time, side in (*self.patches, *((1, s) for s in SIDES)):
            if high % side == 0 and wide % side == 0:
                rows, columns, frames = high // side, wide // side, -(-self.frames // time)
                for _ in range(HALVINGS):
                    for count in {frames, 1}:
                        if count * rows * columns == n:
                            return True, (count * rows, columns)
                    rows, columns = -(-rows // 2), -(-columns // 2)
        return False, None


def read(config: Any, kwargs: Mapping[str, Any]) -> Latents | None:
    """The latents among the arguments of a denoiser's call; None where there are none that a picture could be."""
    given = next((kwargs[name] for name in NAMES if isinstance(kwargs.get(name), (Tensor, list, tuple))), None)
    if isinstance(given, (list, tuple)):
        if not given or any(not isinstance(x, Tensor) or x.shape != given[0].shape for x in given):
            return None
        given = torch.stack(list(given))
    if not isinstance(given, Tensor) or given.dim() not in (3, 4, 5):
        return None
    batch = len(given)
    halves = batch % 2 == 0 and batch > 0 and torch.equal(given[: batch // 2], given[batch // 2 :])
    channels = getattr(config, "in_channels", None)
    if given.dim() == 3:
        if channels not in (None, given.shape[2]):  # channels first: a signal of one dimension
            return None
        packed = given.shape[1]
        return Latents(batch, 1, None, packed, _grid_of_row(kwargs, packed), packed, halves)
    high, wide = given.shape[-2:]
    patch = _patch(config)
    time_axis = 2 if given.dim() == 5 and channels != given.shape[2] else 1
    frames = given.shape[time_axis] if given.dim() == 5 else 1
    main = 0
    if patch is not None and high % patch[1] == 0 and wide % patch[1] == 0:
        main = -(-frames // patch[0]) * (high // patch[1]) * (wide // patch[1])
    return Latents(batch, frames, (high, wide), 0, None, main, halves, () if patch is None else (patch,))


def _patch(config: Any) -> tuple[int, int] | None:
    """Frames and side of a patch, from a model's config."""
    size = getattr(config, "patch_size", None)
    if size is None and getattr(config, "all_patch_size", None):
        return int(config.all_f_patch_size[0]), int(config.all_patch_size[0])
    if size is None:
        return None
    if isinstance(size, Sequence):
        return (int(size[0]), int(size[-1])) if len(size) == 3 else (1, int(size[-1]))
    return int(getattr(config, "patch_size_t", None) or 1), int(size)


def _grid_of_row(kwargs: Mapping[str, Any], n: int) -> tuple[int, int] | None:
    """The grid of latents that came as a row of n tokens, from what tells their places beside them."""
    ids = next((kwargs[name] for name in IDS if isinstance(kwargs.get(name), Tensor)), None)
    sides = [kwargs.get(name) for name in ("num_frames", "height", "width")]
    shapes = kwargs.get("img_shapes")
    grid: tuple[int, ...]
    if ids is not None:
        places = (ids[0] if ids.dim() == 3 else ids)[-n:]
        spans = [int(axis.max() - axis.min()) + 1 for axis in places.T]
        grid = (spans[1], spans[2]) if len(spans) > 2 else tuple(spans)
    elif isinstance(shapes, list) and shapes:
        first = shapes[0][0] if isinstance(shapes[0], list) else shapes[0]
        grid = (int(first[0]) * int(first[1]), int(first[2]))
    elif isinstance(sides[1], int) and isinstance(sides[2], int):
        grid = ((sides[0] or 1) * sides[1], sides[2])
    else:
        return None
    return (grid[0], grid[1]) if grid[0] * grid[1] == n else None
