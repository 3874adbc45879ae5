"""Sight: what the encoder tells about the pictures in front of the language model."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tokensieve.needs import Need
from tokensieve.parts import score
from tokensieve.parts.budget import Keep
from tokensieve.sites.anatomy import Anatomy
from tokensieve.sites.clock import Clock
from tokensieve.sites.encoder import ENCODER_SIGNALS, Detach, EncoderSite, Watch
from tokensieve.sites.known import TILED
from tokensieve.sites.layout import Look, Unmapped
from tokensieve.sites.stack import Stack
from tokensieve.sites.stream import Images, Stream

KINDS = ("image", "video")


class Sight:
    """Listens to the encoder of a vision-language model, and lays out what it said as the prompt's pictures are grouped.

    Models encode pictures in ``get_image_features`` and ``get_video_features``, called by `generate` or by the forward pass;
    each call is a :class:`Look`.
    """

    def __init__(self, anatomy: Anatomy, needs: Sequence[Need], encoder: EncoderSite | None, clock: Clock):
        self.anatomy, self.encoder, self.needs, self.clock = anatomy, encoder, needs, clock
        self.towers = [stack for stack in (anatomy.vision, anatomy.film) if stack is not None]
        self.watches = [Watch(stack, needs, clock, (anatomy.feature_layer,)) for stack in self.towers]
        self.looks: list[Look] = []
        self._new: dict[str, Look] = {}
        self._inside = False
        self._shapes: list[tuple[int, ...]] = []
        self._packed: dict[str, Any] | None = None

    @property
    def watched(self) -> list[Stack]:
        """The encoders whose attention is read."""
        return [watch.stack for watch in self.watches if watch.reads]

    def attach(self) -> list[Detach]:
        base = self.anatomy.base
        out = [detach for watch in self.watches for detach in watch.attach()]
        for kind in KINDS:
            out += _around(base, f"get_{kind}_features", functools.partial(self._look, kind))
        out += _around(base, "pack_image_features", self._pack)
        for stack in self.towers:
            out.append(stack.layers[0].register_forward_pre_hook(self._shape(stack), with_kwargs=True).remove)
        return out

    # ---- listening --------------------------------------------------------------------------------------------------

    def _look(self, kind: str, encode: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        if self._inside:  # some encode videos through the function for images
            return encode(*args, **kwargs)
        self._inside, self._shapes, self._packed = True, [], None
        for watch in self.watches:
            watch.seen.clear()
        try:
            out = encode(*args, **kwargs)
        finally:
            self._inside = False
        given = _named(encode, args, kwargs)
        features = out[1] if isinstance(out, tuple) else getattr(out, "pooler_output", None)
        lengths = _videos(_lengths(features), given.get("pixel_values_videos"))
        if lengths and self._shapes:
            look = Look(self.anatomy, kind, given, lengths, self._shapes, {}, self._packed)
            with self.clock:
                look.seen = {**self._heard(look), **self._bits(look)}
            self._new[kind] = look
        for watch in self.watches:
            watch.seen.clear()
        return out

    def _pack(self, pack: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        if self._inside:
            self._packed = _named(pack, args, kwargs)
        return pack(*args, **kwargs)

    def _shape(self, stack: Stack) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            self._shapes.append(stack.patches(stack.given(args, kwargs)))

        return hook

    def _heard(self, look: Look) -> dict[str, dict[int, Tensor]]:
        """The recorded signals, ``(rows, ...)``, in the order in which the rows entered the encoder."""
        out: dict[str, dict[int, Tensor]] = {}
        for name, layers in ((n, seen) for watch in self.watches for n, seen in watch.seen.items()):
            for layer, calls in layers.items():
                parts = [c.movedim(1 if name in ("keys", "values") else -1, 1) for c in calls]
                if self.encoder is not None:
                    parts = [self.encoder.widen(p) for p in parts]
                rows = torch.cat([p.flatten(0, 1) for p in parts])
                whole = torch.tensor(look.lengths) * look.rows // look.tokens
                if name == "received_attention" and len(look.shapes[0]) == 1 and int(whole.sum()) == look.rows:
                    # Rows attend within frames or windows; the mean is over the queries of the whole picture.
                    queries = torch.tensor([p.shape[1] for p in parts]).repeat_interleave(
                        torch.tensor([p.shape[1] for p in parts])
                    )
                    share = queries / whole.repeat_interleave(whole)
                    rows = rows * share.to(rows)[:, None]
                out.setdefault(name, {})[layer] = look.unwindowed(rows)
        return out

    def _bits(self, look: Look) -> dict[str, dict[int, Tensor]]:
        """The entropy of each patch's pixels, where a stage asks for it and pictures come as pixels."""
        pixels, patch = look.given.get("pixel_values"), getattr(self.towers[0].config, "patch_size", None)
        if not any(need.name == "entropy" for need in self.needs) or not isinstance(patch, int):
            return {}
        if not isinstance(pixels, Tensor) or pixels.dim() < 4:
            return {}
        bits = score.entropy(pixels.flatten(0, -4), patch).flatten()
        return {"entropy": {0: bits}} if len(bits) == look.rows else {}

    # ---- telling ----------------------------------------------------------------------------------------------------

    def images(self, kinds: dict[str, Tensor], shared: Sequence[Keep]) -> Images:
        """Which visual tokens belong to which picture.

        Args:
            kinds: for "image" and "video", ``(B, L)`` bool, its placeholders.
            shared: budgets per prompt; with any, the pictures of a prompt are one group.
        """
        self.looks, self._new = [self._new[k] for k in KINDS if k in self._new], {}
        if len(self.looks) == 1 and self.looks[0].kind == "video" and not bool(kinds["video"].any()):
            kinds = {"image": kinds["video"], "video": kinds["image"]}  # one placeholder serves for both
        visual = kinds["image"] | kinds["video"]
        source = torch.zeros_like(visual, dtype=torch.long)
        picture = torch.zeros_like(source)
        runs = _runs(visual)
        before, known = 0, True
        for kind in KINDS:
            here = kinds[kind]
            if not bool(here.any()):
                continue
            look = next((k for k in self.looks if k.kind == kind), None)
            rank = None if look is None else _rank(here, look.tokens)
            if look is None or rank is None:
                known, picture = False, torch.where(here, 2 * runs, picture)
                continue
            ends = torch.tensor(look.lengths, device=here.device).cumsum(0)
            label = torch.searchsorted(ends, rank[here], right=True)
            own = runs[here]
            if kind == "image" and (self._tiled(look) or _are_tiles(own, look.tile)):
                label = own
            picture[here] = 2 * label + (kind == "video")
            source[here] = before + rank[here]
            before += look.tokens
        self.looks = self.looks if known else []
        return Images.of(visual, picture[visual], source[visual] if known else None, shared)

    def unseen(self, around: bool) -> None:
        """The language model runs in a pass that brought no placeholders; ``around``: within the model's own forward pass.

        Raises:
            ValueError: pictures were encoded, and the language model is called past that.
        """
        waiting, self._new = self._new, {}
        if waiting and not around:
            raise ValueError(
                f"{type(self.anatomy.model).__name__} hands pictures to its language model outside its forward pass, where a "
                "sieve cannot follow"
            )

    def forget(self) -> None:
        """At the end of a pass: what was recorded of its pictures has been read."""
        for look in self.looks:
            look.seen.clear()

    def grid(self, mask: Tensor) -> tuple[int, int] | None:
        """Rows and columns of a picture's tokens, where they lie on one grid that fits ``mask``, ``(I, n)`` bool."""
        grid = self.looks[0].grid() if len(self.looks) == 1 else None
        fits = grid is not None and mask.shape[1] == grid[0] * grid[1] and bool(mask.all())
        return grid if fits else None

    def signals(self, stream: Stream, heard: bool) -> dict[str, Any]:
        """What it said, for the tokens still in the stream: crop, frame and spot, and encoder signals by layer (``heard``)."""
        out: dict[str, Any] = self._places(stream)
        if not heard:
            return out
        for name in {n for look in self.looks for n in look.seen}:
            for layer in {i for look in self.looks for i in look.seen.get(name, ())}:
                if any(layer not in look.seen.get(name, ()) for look in self.looks):
                    self._missing(name, "only some of its pictures come with it")
                    continue
                try:
                    rows = torch.cat([look.tokens_of(look.seen[name][layer]) for look in self.looks])
                except Unmapped as error:
                    self._missing(name, str(error))
                    continue
                laid = stream.reduction.take(stream.images.lay(rows.nan_to_num(0.0)))
                out.setdefault(name, {})[layer] = laid if name in ("keys", "values") else laid.movedim(1, -1)
        if "entropy" in out:
            out["entropy"] = out["entropy"][0]
        if not self.looks:
            for name in {n for watch in self.watches for need in self.needs for n in watch.names(need)}:
                self._missing(name, "the encoder did not run in this pass")
        return out

    def _missing(self, name: str, why: str) -> None:
        for need in self.needs:
            rest = {need.name, *need.instead} - set(ENCODER_SIGNALS)
            if name in (need.name, *need.instead) and not rest:
                raise ValueError(
                    f"{type(self.anatomy.model).__name__} cannot give {name} of its visual tokens: {why}; "
                    "use a method that reads features only, such as 'divprune'"
                )

    def _places(self, stream: Stream) -> dict[str, Any]:
        sheets = [look.sheet for look in self.looks]
        if not sheets or any(s is None for s in sheets):
            return {}
        images, device = stream.images, stream.index.device
        count = [len(look.grids) for look in self.looks if look.grids is not None]
        shifted = [s[0] + (s[0] >= 0) * sum(count[:i]) for i, s in enumerate(sheets) if s is not None]
        sheet = images.lay(torch.cat(shifted).to(device) + 1) - 1
        spot = images.lay(torch.cat([s[1] for s in sheets if s is not None]).to(device))
        film = torch.cat([torch.full((k.tokens,), k.kind == "video") for k in self.looks]).to(device)
        video = images.lay(film) & (sheet >= 0)
        still = images.mask & ~images.lay(film)
        first = torch.where(sheet >= 0, sheet, sheet.max()).amin(1, keepdim=True)
        number = torch.where(sheet >= 0, sheet - first, -1)
        tiled = any(self._tiled(look) for look in self.looks)
        out: dict[str, Any] = {}
        if bool((number[still] > 0).any()) and bool((images.pictures == 1).all()):
            last = number.amax(1, keepdim=True)
            crop = torch.where((number == last) | (number < 0), number.clamp(max=0), number + 1) if tiled else number
            out["crop"] = torch.where(still, crop, -1)
        if bool(video.any()):
            out["frame"] = torch.where(video, number, -1)
        if not (tiled and "crop" in out):  # where tiles lie in the picture is not told
            out["spot"] = spot
        return {name: stream.reduction.take(value) for name, value in out.items()}

    def _tiled(self, look: Look) -> bool:
        config: Any = self.anatomy.model.config
        return look.kind == "image" and config.model_type in TILED


def _around(base: Any, name: str, call: Callable[..., Any]) -> list[Detach]:
    """Have ``call`` stand around a method of one module; [] where it has no such method."""
    plain = getattr(base, name, None)
    if plain is None:
        return []

    @functools.wraps(plain)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return call(plain, args, kwargs)

    base.__dict__[name] = wrapped
    return [lambda: base.__dict__.pop(name)]


def _named(function: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    bound = inspect.signature(function).bind_partial(*args, **kwargs).arguments
    return {**bound, **bound.pop("kwargs", {})}


def _lengths(features: Any) -> list[int]:
    """Tokens of each picture, from the features that a model made of them."""
    if isinstance(features, Tensor):
        return [features.shape[1]] * len(features) if features.dim() == 3 else [len(features)]
    if isinstance(features, (list, tuple)) and all(isinstance(f, Tensor) for f in features):
        return [f.shape[:-1].numel() for f in features]
    return []


def _videos(lengths: list[int], pixels: Tensor | None) -> list[int]:
    """Tokens of each video, where features come frame by frame (pixels ``(videos, frames, ...)``)."""
    if pixels is None or pixels.dim() != 5 or len(lengths) != pixels.shape[:2].numel():
        return lengths
    frames = pixels.shape[1]
    return [sum(lengths[i : i + frames]) for i in range(0, len(lengths), frames)]


def _runs(visual: Tensor) -> Tensor:
    """``(B, L)`` long: the number of the run of neighbours that each visual token belongs to."""
    before = torch.nn.functional.pad(visual[:, :-1], (1, 0))
    return (visual & ~before).flatten().long().cumsum(0).view(visual.shape)


def _are_tiles(run: Tensor, tile: int | None) -> bool:
    """Whether every run holds the tokens of one of the encoder's images."""
    return tile is not None and bool((run.unique_consecutive(return_counts=True)[1] == tile).all())


def _rank(here: Tensor, tokens: int) -> Tensor | None:
    """``(B, L)`` long: the rank of each placeholder among the encoder's ``tokens``, where every row may stand there several
    times (beams); None where they do not fit."""
    per_row = here.sum(1)
    copies, rest = divmod(int(per_row.sum()), tokens)
    if rest or not copies or len(per_row) % copies or bool((per_row.view(-1, copies) != per_row[::copies, None]).any()):
        return None
    once = per_row[::copies]
    start = (once.cumsum(0) - once).repeat_interleave(copies)
    return start[:, None] + here.long().cumsum(1) - 1
