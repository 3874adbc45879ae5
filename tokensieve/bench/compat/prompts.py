"""Prompts for tiny models, with placeholders as the real processors lay them out; no processor, no download."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from tokensieve.bench.compat.tiny_models import IMAGE, VIDEO, VOCAB, family
from tokensieve.sites.model.compatibility import pixels_in, pixels_name

TEXT_FROM = 8  # ids below are special


@dataclass
class PromptRow:
    """One prompt: its ids and what its pictures are made of."""

    ids: Tensor
    pictures: dict[str, Any] = field(default_factory=dict)


class Prompts:
    """Makes prompts for a model.

    Args:
        model: a vision-language model.
        frames: of each video.
    """

    def __init__(self, model: Any, frames: int = 2):
        self.model = model
        self.frames = frames
        self.config: Any = self.model.config
        self.vision: Any = _sight(self.config)
        self.family = family(self.config.model_type)
        self.takes = set(inspect.signature(self.model.forward).parameters)

    def batch(
        self, images: Sequence[int] = (1,), video: bool = False, before: int = 3, after: int = 6
    ) -> dict[str, Tensor]:
        """Model inputs, padded on the left; row i holds images[i] images (or videos)."""
        return self.collate([self.row(i, n, video, before, after) for i, n in enumerate(images)])

    def row(self, seed: int, images: int, video: bool = False, before: int = 3, after: int = 6) -> PromptRow:
        """The same row whatever the batch around it."""
        g = torch.Generator().manual_seed(seed)

        def text(n: int) -> Tensor:
            return torch.randint(TEXT_FROM, VOCAB, (n,), generator=g)

        ids = [text(before + seed)]
        pictures = self._pictures([(4 if i % 2 else 8, 8) for i in range(images)], video, g) if images else {}
        for runs in self._runs(pictures, images, video) if images else []:
            for n in runs:
                ids += [torch.full((n,), self.family.video if video else IMAGE), text(1)]
            ids += [text(1)]
        return PromptRow(torch.cat([*ids, text(after)]), pictures)

    def collate(self, rows: Sequence[PromptRow]) -> dict[str, Tensor]:
        """Several rows as one batch, padded on the left."""
        most = max(len(r.ids) for r in rows)
        ids = torch.stack([pad(r.ids, (most - len(r.ids), 0)) for r in rows])
        out = {"input_ids": ids, "attention_mask": (ids != 0).long()}
        film = any("pixel_values_videos" in r.pictures for r in rows)
        kind = ((ids == IMAGE) | (ids == VIDEO)).long() * (2 if film else 1)
        out |= {name: kind for name in ("mm_token_type_ids", "token_type_ids") if name in self.takes}
        every = [r.pictures for r in rows if r.pictures]
        for name in every[0] if every else ():
            out[name] = self._joined(name, every)
        return out

    def _joined(self, name: str, pictures: list[dict[str, Any]]) -> Tensor:
        parts = [p[name] for p in pictures]
        if "target_sizes" in self.takes and name.startswith("pixel_values"):
            return torch.cat(parts, -1)
        if name.endswith("token_pooling"):  # counts the patches of the whole batch
            pixels = name.replace("image_token_pooling", "pixel_values").replace(
                "video_token_pooling", "pixel_values_videos"
            )
            before = torch.tensor([0, *(p[pixels].shape[:2].numel() for p in pictures)]).cumsum(0).tolist()
            parts = [part + n for part, n in zip(parts, before, strict=False)]
        return _together(parts)

    # ---- pictures ---------------------------------------------------------------------------------------------------

    def _pictures(self, grids: list[tuple[int, int]], video: bool, g: torch.Generator) -> dict[str, Any]:
        def noise(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=g)

        patch = self._patch()
        name = pixels_name(self.takes, "video" if video else "image")
        if "spatial_shapes" in self.takes:
            shapes = torch.tensor(grids)
            real = torch.arange(int(shapes.prod(1).max())) < shapes.prod(1)[:, None]
            return {
                name: noise(*real.shape, 3 * patch**2),
                "spatial_shapes": shapes,
                "pixel_attention_mask": real.long(),
            }
        kind, frames = ("video", self.frames) if video else ("image", 1)
        if "image_position_ids" in self.takes:
            shown = [grid for grid in grids for _ in range(frames)]
            side = getattr(self.vision, "model_patch_size", patch)
            at = torch.full((len(shown), max(h * w for h, w in shown), 2), -1)
            for ids, (h, w) in zip(at, shown, strict=True):
                ids[: h * w] = torch.cartesian_prod(torch.arange(h), torch.arange(w)).flip(1)
            out = {name: noise(*at.shape[:2], 3 * side**2), f"{kind}_position_ids": at}
            return out | ({"num_frames_per_video": torch.full((len(grids),), frames)} if video else {})
        if "image_token_pooling" in self.takes:
            return self._pooled(name, kind, len(grids), frames, g)
        if "target_sizes" in self.takes:
            sizes = torch.tensor(grids).repeat_interleave(frames, 0)
            wide = int(sizes.prod(1).sum()) * patch
            return {name: noise(1, 3, patch, wide), "target_sizes_videos" if video else "target_sizes": sizes}
        if "image_grid_thw" in self.takes:
            deep = getattr(self.vision, "temporal_patch_size", getattr(self.vision, "patch_temporal", 1))
            flat = torch.tensor([[frames, h, w] for h, w in grids])
            one = (3, patch, patch) if self.family.unfolded else (3 * patch**2 * deep,)
            out = {name: noise(int(flat.prod(1).sum()), *one), f"{kind}_grid_thw": flat}
            if f"{kind}_merge_sizes" in self.takes:
                out[f"{kind}_merge_sizes"] = torch.full((len(grids),), 2)
            return out
        size = self.vision.image_size if isinstance(getattr(self.vision, "image_size", None), int) else 8 * patch
        if video:
            return {name: noise(len(grids), self.frames, 3, size, size)}
        if "image_sizes" in self.takes and hasattr(self.config, "image_grid_pinpoints"):
            sizes = torch.tensor([[size, 2 * size - 9] if h == w else [2 * size, size] for h, w in grids])
            return {name: noise(len(grids), 3, 3, size, size), "image_sizes": sizes}
        if "image_sizes" in self.takes and self.vision.model_type == "pixtral":
            sizes = torch.tensor(grids) * patch
            return {name: noise(len(grids), 3, *sizes.amax(0).tolist()), "image_sizes": sizes}
        if "image_sizes" in self.takes and hasattr(self.vision, "channel_multiplier"):
            return {name: noise(len(grids), 3, size, size), "image_sizes": torch.full((len(grids), 2), size)}
        if "tile_fine_mask" in self.takes:
            tiles = 2 * len(grids)
            return {
                name: noise(1, tiles, 3, size, size),
                "pixel_attention_mask": torch.ones(1, tiles, dtype=torch.bool),
            }
        if "high_res_pixel_values" in self.takes:
            high = self.config.high_res_vision_config.image_size
            return {name: noise(len(grids), 3, size, size), "high_res_pixel_values": noise(len(grids), 3, high, high)}
        if "pixel_attention_mask" in self.takes:
            tiles = 2 * len(grids)
            return {
                name: noise(1, tiles, 3, size, size),
                "pixel_attention_mask": torch.ones(1, tiles, size, size).long(),
            }
        return {name: noise(len(grids), 3, size, size)}

    def _pooled(self, name: str, kind: str, count: int, frames: int, g: torch.Generator) -> dict[str, Any]:
        """Crops whose patches are pooled by index, four to a token."""
        patch, (high, wide) = self._patch(), self.vision.image_size
        h, w = high // patch, wide // patch
        pixels = torch.randn(count * frames, h * w, 3 * patch**2, generator=g)
        blocks = torch.arange(count * frames * h * w).view(-1, h // 2, 2, w // 2, 2).transpose(2, 3).reshape(-1, 4)
        grid = [frames, h // 2, w // 2] if kind == "video" else [h // 2, w // 2, 0, 0]
        return {name: pixels, f"{kind}_token_pooling": blocks, f"{kind}_grids": torch.tensor([grid] * count)}

    def _patch(self) -> int:
        if hasattr(self.vision, "channel_multiplier"):  # convolutions, each of which halves the side
            return 2 ** (len(self.vision.channel_multiplier) - 1)
        patch = self.vision.patch_size
        return patch if isinstance(patch, int) else patch[0]

    def _runs(self, pictures: dict[str, Any], images: int, video: bool) -> list[list[int]]:
        """For each picture the lengths of its runs of placeholders; text stands between them."""
        owner = next(m for m in (self.model.base_model, self.model) if hasattr(m, "get_image_features"))
        encode = owner.get_video_features if video else owner.get_image_features
        known = inspect.signature(encode).parameters
        kind = "video" if video else "image"
        given = {k: v for k, v in pictures.items() if k in known} | {
            pixels_name(known, kind): pixels_in(pictures, kind)
        }
        with torch.no_grad():
            made = encode(**given, return_dict=True)
        out = made.last_hidden_state if made.pooler_output is None else made.pooler_output
        if isinstance(out, Tensor) and out.dim() == 3 and len(out) % images == 0 and len(out) != images:
            return [[len(out) // images * out.shape[1]]] * images
        lengths = (
            [f.shape[:-1].numel() for f in out]
            if not isinstance(out, Tensor) or out.dim() == 3
            else [len(out) // images] * images
        )
        if "pixel_attention_mask" in self.takes and "spatial_shapes" not in self.takes:
            each = lengths[0] // pixels_in(pictures, "image").shape[1]
            return [[each, each]] * images
        if self.vision.model_type == "pixtral":
            step = self._patch() * getattr(self.config, "spatial_merge_size", 1)
            return [[w // step] * (h // step) for h, w in pictures["image_sizes"].tolist()]
        if video and self.family.frames_apart:
            return [[n // self.frames] * self.frames for n in lengths]
        return [[n] for n in lengths]


def _sight(config: Any) -> Any:
    """The part of a config that knows of patches."""
    vision = getattr(config, "vision_config", None) or config.vq_config
    parts = (getattr(vision, part, None) for part in getattr(vision, "sub_configs", None) or {})
    return next((part for part in (vision, *parts) if hasattr(part, "patch_size")), vision)


def _together(parts: list[Tensor]) -> Tensor:
    """Concatenated along dimension 0, padded with zeros to the same shape."""
    most = [max(sizes) for sizes in zip(*(p.shape[1:] for p in parts), strict=True)]
    wide = [
        pad(p, [n for full, has in zip(most[::-1], p.shape[:0:-1], strict=True) for n in (0, full - has)])
        for p in parts
    ]
    return torch.cat(wide)
