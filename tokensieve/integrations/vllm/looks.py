"""Looks: one picture's pass through the encoder, and the signals of its tokens, run by run."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tokensieve.core.needs import Need
from tokensieve.parts import score
from tokensieve.sites.model.quirks import TILED
from tokensieve.sites.model.structure import Anatomy
from tokensieve.sites.visual.layout import EncoderPass, Unmapped, crops, numbered


def images_of(given: Mapping[str, Any]) -> int:
    """How many of the encoder's images (crops, tiles) a picture is made of, by its pixels; 1 where that is not told."""
    pixels = pixels_of(given)
    return 1 if pixels is None else len(pixels)


def joins(anatomy: Anatomy, given: Mapping[str, Any]) -> bool:
    """Whether the model joins the crops of a picture into one."""
    return hasattr(anatomy.base, "pack_image_features") and given.get("image_sizes") is not None


def look_of(
    anatomy: Anatomy,
    given: Mapping[str, Any],
    runs: Sequence[int],
    parts: dict[str, dict[int, list[Tensor]]],
    rows: int,
) -> EncoderPass:
    """The pass of one picture.

    Args:
        given: what it alone was given; runs: the tokens of each run of its slots.
        parts: what was heard of it; rows: the encoder's rows that are its own.
    """
    assert anatomy.vision is not None
    pixels = pixels_of(given)
    count = 1 if pixels is None else len(pixels)
    if pixels is not None and joins(anatomy, given):
        real = min(count, _crops(anatomy, given))
        rows, count, pixels = rows // count * real, real, pixels[:real]
        parts = {name: {at: heard[:real] for at, heard in of.items()} for name, of in parts.items()}
    shape: tuple[int, ...] = (rows,) if anatomy.vision.ragged else (count, rows // count)
    mine: dict[str, Any] = {n: v for n, v in given.items() if n.endswith("grid_thw")}
    if pixels is not None:
        mine["pixel_values"] = pixels
    packed = _packed(anatomy, given, count) if joins(anatomy, given) else None
    look = EncoderPass(anatomy, "image", mine, list(runs), [shape], {}, packed)
    look.seen = {name: {at: look.entered(name, heard) for at, heard in of.items()} for name, of in parts.items()}
    return look


def signals_of(look: EncoderPass, needs: Sequence[Need]) -> list[dict[str, Any]]:
    """For each run what is known of its tokens, as `tokensieve.Signals` takes it with one row."""
    every: dict[str, Any] = {}
    for name, layers in {**look.seen, **_bits(look, needs)}.items():
        for layer, rows in layers.items():
            try:
                every.setdefault(name, {})[layer] = look.tokens_of(rows).nan_to_num(0.0)
            except Unmapped:
                continue
    model: Any = look.anatomy.model
    tiled = model.config.model_type in TILED
    grid, out, start = look.grid(), [], 0
    for n in look.lengths:
        given: dict[str, Any] = {}
        for name, layers in every.items():
            laid = {at: rows[start : start + n][None] for at, rows in layers.items()}
            given[name] = {at: x if name in ("keys", "values") else x.movedim(1, -1) for at, x in laid.items()}
        if "entropy" in given:
            given["entropy"] = given["entropy"][0]
        if grid is not None and grid[0] * grid[1] == n:
            given["grid"] = grid
        if look.crop_index is not None:
            index, spot = (x[start : start + n][None] for x in look.crop_index)
            number = numbered(index)
            if bool((number > 0).any()):
                given["crop"] = crops(number, tiled)
            if "grid" not in given and not (tiled and "crop" in given):
                given["spot"] = spot
        out.append(given)
        start += n
    return out


def _bits(look: EncoderPass, needs: Sequence[Need]) -> dict[str, dict[int, Tensor]]:
    patch = getattr(look.anatomy.vision.config, "patch_size", None) if look.anatomy.vision else None
    pixels = look.given.get("pixel_values")
    if pixels is None or not isinstance(patch, int) or not any(need.name == "entropy" for need in needs):
        return {}
    bits = score.entropy(pixels, patch).flatten()
    return {"entropy": {0: bits}} if len(bits) == look.rows else {}


def pixels_of(given: Mapping[str, Any]) -> Tensor | None:
    """``(images, 3, H, W)``; None where a picture comes as rows of patches, or as embeddings."""
    for name, value in given.items():
        if not name.startswith("pixel_values"):
            continue
        one = value[0] if isinstance(value, (list, tuple)) and len(value) == 1 else value
        if isinstance(one, Tensor) and one.dim() >= 4:
            return one.flatten(0, -4)
    return None


def _crops(anatomy: Anatomy, given: Mapping[str, Any]) -> int:
    """How many crops are a picture's own; behind them may stand empty ones, as many as make all of a prompt alike."""
    config: Any = anatomy.model.config
    home: Any = inspect.getmodule(type(anatomy.base))
    size = torch.as_tensor(given["image_sizes"][0]).tolist()
    return int(home.image_size_to_num_patches(size, config.image_grid_pinpoints, config.vision_config.image_size))


def _packed(anatomy: Anatomy, given: Mapping[str, Any], count: int) -> dict[str, Any]:
    """How the model joined the crops: the arguments of transformers' function for it."""
    base: Any = anatomy.base
    sizes = torch.as_tensor(given["image_sizes"][0]).reshape(1, 2)
    out: dict[str, Any] = {"image_features": [torch.empty(count, 0)], "image_sizes": sizes}
    taken = inspect.signature(base.pack_image_features).parameters
    named = {"vision_feature_select_strategy", "vision_aspect_ratio"} & set(taken)
    return out | {name: value for name in named if (value := getattr(base.config, name, None)) is not None}
