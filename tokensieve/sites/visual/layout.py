"""Layout: from the encoder's rows to the visual tokens of the language model.

Between the two, models merge blocks of patches (pixel shuffle, patch merging, pooling), join crops into one picture, and add
tokens that end a line. What the encoder says of its rows goes the same way: blocks are averaged, crops joined by the model's
own code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tokensieve.sites.encoder.state import EncoderReduction
from tokensieve.sites.model.compatibility import get_vision_window_index
from tokensieve.sites.model.quirks import ROW_BY_ROW
from tokensieve.sites.model.structure import Anatomy


class Unmapped(ValueError):
    """The encoder's rows do not correspond to the language model's visual tokens."""


@dataclass(eq=False)
class EncoderPass:
    """One pass of the encoder over the pictures of one kind.

    Attributes:
        kind: "image" or "video".
        given: what it was given (pixels, grids, sizes).
        lengths: visual tokens of each picture.
        shapes: of the states in front of the first block, one per call, special tokens not counted: ``(count, tokens)``,
            or ``(tokens,)`` where pictures of all sizes stand in one row.
        seen: signals by name and layer, ``(rows, ...)``.
        packed: how the model joined crops into pictures (arguments of its ``pack_image_features``); None where it did not.
        encoded: what became of the tokens between the encoder's blocks, call by call, where a stage reduces them there.
    """

    anatomy: Anatomy
    kind: str
    given: dict[str, Any]
    lengths: list[int]
    shapes: list[tuple[int, ...]]
    seen: dict[str, dict[int, Tensor]]
    packed: dict[str, Any] | None = None
    encoded: Sequence[EncoderReduction] = ()

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    @cached_property
    def rows(self) -> int:
        return sum(int(torch.Size(shape).numel()) for shape in self.shapes)

    @cached_property
    def tile(self) -> int | None:
        """Visual tokens of each of the encoder's images, where all have the same and pictures hold several."""
        count = sum(shape[0] for shape in self.shapes if len(shape) == 2)
        if count <= len(self.lengths) or self.tokens % count:
            return None
        return self.tokens // count

    @cached_property
    def grids(self) -> Tensor | None:
        """``(S, 2)`` rows and columns of patches of each of the encoder's images or frames, in order; None if unknown."""
        patch = side_of(getattr(self.anatomy.vision.config, "patch_size", None)) if self.anatomy.vision else None
        thw = next((v for k, v in self.given.items() if k.endswith("grid_thw") and v is not None), None)
        pixels = next(
            (v for k, v in self.given.items() if k.startswith("pixel_values") and isinstance(v, Tensor)), None
        )
        out = None
        if thw is not None:
            out = torch.repeat_interleave(thw[:, 1:].cpu(), thw[:, 0].cpu(), 0)
        elif patch and len(self.shapes[0]) == 1 and self.given.get("image_sizes") is not None:
            out = torch.as_tensor(self.given["image_sizes"]).cpu() // patch
        elif patch and pixels is not None and pixels.dim() >= 4 and len(self.shapes[0]) == 2:
            side = torch.tensor([pixels.shape[-2] // patch, pixels.shape[-1] // patch])
            out = side.expand(sum(s[0] for s in self.shapes), 2)
        return out if out is not None and int(out.prod(1).sum()) == self.rows else None

    @cached_property
    def merged(self) -> int:
        """Patches along a side of the block that becomes one token, before crops are joined.

        Raises:
            Unmapped: tokens are not square blocks of patches.
        """
        if self._packs or self._pooled_frames or self._with_specials:
            return 1
        side = round((self.rows / self.tokens) ** 0.5)
        grids = self.grids
        if self.rows != self.tokens * side**2 or (side > 1 and (grids is None or bool((grids % side).any()))):
            raise Unmapped(f"{self.rows} rows of the encoder become {self.tokens} visual tokens")
        return side

    def tokens_of(self, x: Tensor) -> Tensor:
        """Rows of the encoder ``(R, ...)`` -> visual tokens ``(N, ...)``; NaN at tokens that stand for no patch.

        Raises:
            Unmapped: there is no such way.
        """
        if self.anatomy.resampled:
            raise Unmapped("attention stands between its encoder and its language model")
        out = self._joined(self._blocks(x.reshape(len(x), -1).float()))
        if len(out) != self.tokens:
            raise Unmapped(f"{self.rows} rows of the encoder become {self.tokens} visual tokens")
        return out.reshape(-1, *x.shape[1:])

    def entered(self, name: str, parts: Sequence[Tensor]) -> Tensor:
        """What was recorded of a signal in one layer, ``(count, rows, ...)`` each call, as ``(rows, ...)`` in the order in which
        the rows entered the encoder."""
        rows = torch.cat([p.flatten(0, 1) for p in parts])
        whole = torch.tensor(self.lengths) * self.rows // self.tokens
        if name == "received_attention" and len(self.shapes[0]) == 1 and int(whole.sum()) == self.rows:
            # Rows attend within frames or windows; the mean is over the queries of the whole picture.
            queries = torch.tensor([p.shape[1] for p in parts]).repeat_interleave(
                torch.tensor([p.shape[1] for p in parts])
            )
            share = queries / whole.repeat_interleave(whole)
            rows = rows * share.to(rows)[:, None]
        return self.unwindowed(rows)

    def unwindowed(self, x: Tensor) -> Tensor:
        """Rows in the order in which the blocks hold them -> in the order in which they enter the encoder."""
        config: Any = self.anatomy.vision.config if self.anatomy.vision else None
        window = getattr(config, "window_size", None)
        thw = next((v for k, v in self.given.items() if k.endswith("grid_thw") and v is not None), None)
        if not window or thw is None or not hasattr(config, "fullatt_block_indexes"):
            return x
        side = config.spatial_merge_size
        order, _ = get_vision_window_index(thw, side, window, side_of(config.patch_size))
        out = torch.empty_like(x)
        out.view(-1, side**2, *x.shape[1:])[order.to(x.device)] = x.view(-1, side**2, *x.shape[1:])
        return out

    @cached_property
    def crop_index(self) -> tuple[Tensor, Tensor] | None:
        """For each visual token which of the encoder's images (or frames) it belongs to, ``(N,)`` long, -1 for none, and the
        centre ``(y, x)`` of what it sees, ``(N, 2)`` in [0, 1]; None where that is unknown."""
        if self.grids is None:
            return None
        number = torch.arange(len(self.grids)).repeat_interleave(self.grids.prod(1))
        try:
            at = self.tokens_of(torch.cat([number[:, None].float(), self._centres()], 1))
        except Unmapped:
            return None
        none = at.isnan().any(1)
        crops = torch.where(none, -1, at[:, 0].nan_to_num().round().long())
        spot = at[:, 1:]
        return (crops, self._whole(crops, spot)) if self._packs else (crops, spot.nan_to_num(0.5))

    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of tokens, where every picture is one grid of the same size."""
        if self.grids is None or len(self.grids) != len(self.lengths) or bool((self.grids != self.grids[0]).any()):
            return None
        try:
            h, w = (int(n) // self.merged for n in self.grids[0])
        except Unmapped:
            return None
        return (h, w) if all(n == h * w for n in self.lengths) else None

    # ---- the steps --------------------------------------------------------------------------------------------------

    @property
    def _packs(self) -> bool:
        return self.packed is not None

    @property
    def _pooled_frames(self) -> bool:
        return self.kind == "video" and hasattr(self.anatomy.base, "apply_pooling")

    @property
    def _with_specials(self) -> bool:
        """Whether CLS and its like go on to the language model too, in front of the patches of each image."""
        specials = self.anatomy.vision.specials if self.anatomy.vision else 0
        count = sum(shape[0] for shape in self.shapes if len(shape) == 2)
        return bool(specials) and self.packed is None and self.tokens == self.rows + count * specials

    @property
    def _in_blocks(self) -> bool:
        """Whether the patches of a block follow each other, as in rows of packed patches; otherwise they lie row by row."""
        config: Any = self.anatomy.model.config
        packed = any(k.endswith("grid_thw") and v is not None for k, v in self.given.items())
        return packed and config.model_type not in ROW_BY_ROW

    def _blocks(self, x: Tensor) -> Tensor:
        side = self.merged
        if side == 1:
            return x
        if self._in_blocks:
            return x.view(-1, side**2, x.shape[1]).mean(1)
        assert self.grids is not None
        sizes, counts = self.grids.unique_consecutive(dim=0, return_counts=True)
        out, start = [], 0
        for (h, w), count in zip(sizes.tolist(), counts.tolist(), strict=True):
            part = x[start : start + count * h * w].view(count, h // side, side, w // side, side, x.shape[1])
            out.append(part.mean((2, 4)).flatten(0, 2))
            start += count * h * w
        return torch.cat(out)

    def _joined(self, x: Tensor) -> Tensor:
        base: Any = self.anatomy.base
        nothing = x.new_full((x.shape[1],), torch.nan)
        if self._pooled_frames:
            frames = base.apply_pooling(x.view(sum(s[0] for s in self.shapes), -1, x.shape[1]))
            videos = frames.reshape(len(self.lengths), -1, x.shape[1])
            return torch.cat([videos, nothing.expand(len(videos), 1, -1)], 1).flatten(0, 1)
        if self._with_specials:
            count = sum(s[0] for s in self.shapes)
            specials = nothing.expand(count, (self.tokens - self.rows) // count, -1)
            return torch.cat([specials, x.view(count, -1, x.shape[1])], 1).flatten(0, 1)
        if not self._packs:
            return x
        crops = x.view(sum(s[0] for s in self.shapes), -1, x.shape[1])
        assert self.packed is not None
        counts = [len(f) for f in self.packed["image_features"]]
        options = {**self.packed, "image_features": list(crops.split(counts)), "image_newline": nothing}
        return torch.cat(base.pack_image_features(**options)[0])

    def _centres(self) -> Tensor:
        """``(R, 2)`` the centre of each of the encoder's rows in its own image."""
        assert self.grids is not None
        out = []
        for h, w in self.grids.tolist():
            y, x = (torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w
            at = torch.cartesian_prod(y, x)
            if self._in_blocks and self.merged > 1:
                side = self.merged
                at = at.view(h // side, side, w // side, side, 2).transpose(1, 2).reshape(-1, 2)
            out.append(at)
        return torch.cat(out)

    def _whole(self, crops: Tensor, spot: Tensor) -> Tensor:
        """Centres within crops -> within the picture that they make up: the thumbnail, then lines of equal length."""
        out, start = spot.clone(), 0
        for n in self.lengths:
            mine = crops[start : start + n]
            first = mine[0]
            ends = (mine < 0).nonzero()[:, 0]
            thumb = int((mine == first).long().cumprod(0).sum())
            if len(ends) and ends[0] > thumb:
                wide = int(ends[0]) - thumb + 1
                at = torch.cartesian_prod(torch.arange(len(ends)) + 0.5, torch.arange(wide) + 0.5)
                out[start + thumb : start + n] = (at / torch.tensor([len(ends), wide - 1])).clamp(max=1)
            start += n
        return out.nan_to_num(1.0)


def rowwise(name: str, x: Tensor) -> Tensor:
    """A signal as an encoder's block gives it, with its rows (the patches) in dimension 1."""
    return x.movedim(1 if name in ("keys", "values") else -1, 1)


def numbered(sheet: Tensor) -> Tensor:
    """``(I, n)``, the encoder's images that tokens belong to, counted through all pictures and -1 for none -> counted from 0 in
    each picture."""
    first = torch.where(sheet >= 0, sheet, sheet.max()).amin(1, keepdim=True)
    return torch.where(sheet >= 0, sheet - first, -1)


def crops(number: Tensor, tiled: bool) -> Tensor:
    """``(I, n)``: of images counted in each picture, 0 for the thumbnail, which comes first, or last in ``tiled`` models."""
    last = number.amax(1, keepdim=True)
    return torch.where((number == last) | (number < 0), number.clamp(max=0), number + 1) if tiled else number


def side_of(patch: Any) -> int | None:
    """The side of square patches, given as one number or two; None where they are not square, or not told."""
    if isinstance(patch, (list, tuple)):
        return int(patch[0]) if len(set(patch)) == 1 else None
    return patch if isinstance(patch, int) else None
