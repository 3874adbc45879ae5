"""Sight: what the encoder tells about the pictures in front of the language model."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from tokensieve.core.needs import Need
from tokensieve.parts import score
from tokensieve.parts.budget import Keep
from tokensieve.sites.model import checkpointing, guards
from tokensieve.sites.model.blocks import Stack
from tokensieve.sites.model.clock import Clock
from tokensieve.sites.model.compatibility import pixels_in
from tokensieve.sites.model.quirks import TILED
from tokensieve.sites.model.structure import Anatomy
from tokensieve.sites.visual.encoder_site import ENCODER_SIGNALS, Detach, Encoded, EncoderSite, Heard, Watch
from tokensieve.sites.visual.feature_memory import Remembered, features_of
from tokensieve.sites.visual.images import Images
from tokensieve.sites.visual.layout import EncoderPass, Unmapped
from tokensieve.sites.visual.pictures import Pictures, are_tiles, order, runs_of
from tokensieve.sites.visual.token_stream import Stream

KINDS = ("image", "video")


@dataclass
class Encoding:
    """A call that encodes pictures, while it is under way.

    Attributes:
        shapes: of the states in front of the encoder's first block, call by call.
        packed: how the model joined crops into pictures; None where it did not.
    """

    shapes: list[tuple[int, ...]] = field(default_factory=list)
    packed: dict[str, Any] | None = None


class Sight:
    """Listens to the encoder of a vision-language model, and lays out what it said as the prompt's pictures are grouped.

    Models encode pictures in ``get_image_features`` and ``get_video_features``, called by `generate`, by the forward pass or by
    the caller; each call is a :class:`Look`. It belongs to the features that come out, and is found again by them.
    """

    def __init__(self, anatomy: Anatomy, needs: Sequence[Need], encoder: EncoderSite | None, clock: Clock):
        self.anatomy, self.encoder, self.needs, self.clock = anatomy, encoder, needs, clock
        self.towers = [stack for stack in (anatomy.vision, anatomy.video_tower) if stack is not None]
        self.watches = [Watch(stack, needs, clock, (anatomy.feature_layer,)) for stack in self.towers]
        self._encoding: Encoding | None = None
        self.remembered = Remembered()
        self._waiting: WeakSet[EncoderPass] = WeakSet()
        self._inside: dict[str, Pictures] | None = None

    @property
    def watched(self) -> list[Stack]:
        """The encoders whose attention is read."""
        return [watch.stack for watch in self.watches if watch.reads]

    def attach(self) -> list[Detach]:
        base = self.anatomy.base
        out = [detach for watch in self.watches for detach in watch.attach()]
        for kind in KINDS:
            out += around(base, f"get_{kind}_features", functools.partial(self._look, kind))
        out += around(base, "pack_image_features", self._pack)
        for stack in self.towers:
            out += checkpointing.attach(stack)
            out.append(stack.layers[0].register_forward_pre_hook(self._shape(stack), with_kwargs=True).remove)
        return out

    # ---- listening --------------------------------------------------------------------------------------------------

    def _look(self, kind: str, encode: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        if self._encoding is not None:  # some encode videos through the function for images
            return encode(*args, **kwargs)
        now = self._encoding = Encoding()
        made: list[Encoded] = []
        if self.encoder is not None:
            self.encoder.made = made
        for watch in self.watches:
            watch.seen = {}
        try:
            out = encode(*args, **kwargs)
            heard = [watch.seen or {} for watch in self.watches]
        finally:
            self._encoding = None
            if self.encoder is not None:
                self.encoder.made = None
            for watch in self.watches:
                watch.seen = None
        given = _named(encode, args, kwargs)
        features = features_of(out)
        lengths = _videos(_lengths(features), pixels_in(given, kind) if kind == "video" else None)
        if lengths and now.shapes:
            look = EncoderPass(self.anatomy, kind, given, lengths, now.shapes, {}, now.packed, made)
            with self.clock:
                look.seen = {**self._heard(look, heard), **self._bits(look)}
            every = self.remembered.add(look, out, features)
            if self._inside is not None:
                self._inside[kind] = every
            else:
                self._waiting.add(look)
        return out

    def _pack(self, pack: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        if self._encoding is not None:
            self._encoding.packed = _named(pack, args, kwargs)
        return pack(*args, **kwargs)

    def _shape(self, stack: Stack) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            if self._encoding is not None and not checkpointing.again():
                self._encoding.shapes.append(stack.patches(stack.given(args, kwargs)))

        return hook

    def _heard(self, look: EncoderPass, heard: Sequence[Heard]) -> dict[str, dict[int, Tensor]]:
        """The recorded signals, ``(rows, ...)``, in the order in which the rows entered the encoder."""
        out: dict[str, dict[int, Tensor]] = {}
        for stack, name, layers in (
            (t, n, x) for t, said in zip(self.towers, heard, strict=True) for n, x in said.items()
        ):
            for layer, calls in layers.items():
                parts = [c.movedim(1 if name in ("keys", "values") else -1, 1) for c in calls]
                if self.encoder is not None and self.encoder.stack is stack:
                    parts = [e.widen(p, stack.specials) for e, p in zip(look.encoded, parts, strict=True)]
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

    def _bits(self, look: EncoderPass) -> dict[str, dict[int, Tensor]]:
        """The entropy of each patch's pixels, where a stage asks for it and pictures come as pixels."""
        pixels, patch = pixels_in(look.given, look.kind), getattr(self.towers[0].config, "patch_size", None)
        if not any(need.name == "entropy" for need in self.needs) or not isinstance(patch, int):
            return {}
        if not isinstance(pixels, Tensor) or pixels.dim() < 4:
            return {}
        bits = score.entropy(pixels.flatten(0, -4), patch).flatten()
        return {"entropy": {0: bits}} if len(bits) == look.rows else {}

    # ---- telling ----------------------------------------------------------------------------------------------------

    def begin(self, given: Any) -> dict[str, Pictures]:
        """A pass begins: the pictures that it brings, by kind; those that it encodes itself are added as they are.

        Args:
            given: the encoder's outputs that the pass was given, by kind, or None.
        """
        self._inside = out = {}
        for kind in KINDS:
            output = given.get(kind) if isinstance(given, dict) else given if kind == "image" else None
            pictures = None if output is None else self.remembered.find(output)
            if pictures is not None:
                out[kind] = pictures
        return out

    def end(self) -> None:
        self._inside = None

    def images(
        self, kinds: dict[str, Tensor], pictures: dict[str, Pictures], shared: Sequence[Keep], sequence: Tensor | None
    ) -> Images:
        """Which visual tokens belong to which picture.

        Args:
            kinds: for "image" and "video", ``(B, L)`` bool, its placeholders.
            pictures: by kind, what stands there.
            shared: budgets per prompt; with any, the pictures of a prompt are one group.
            sequence: ``(B, L)`` long, which of the sequences in its row each token belongs to; None where rows hold one.
        """
        if list(pictures) == ["video"] and not bool(kinds["video"].any()):
            kinds = {"image": kinds["video"], "video": kinds["image"]}  # one placeholder serves for both
        visual = kinds["image"] | kinds["video"]
        source = torch.zeros_like(visual, dtype=torch.long)
        picture = torch.zeros_like(source)
        runs = runs_of(visual, sequence)
        looks: list[EncoderPass] = []
        known = True
        for kind in KINDS:
            here = kinds[kind]
            if not bool(here.any()):
                continue
            found = order(here, pictures.get(kind, []), looks)
            if found is None:
                known, picture = False, torch.where(here, 2 * runs, picture)
                continue
            label, at = found
            own = runs[here]
            look = pictures[kind][0][0]
            if kind == "image" and (self._tiled(look) or are_tiles(own, look.tile)):
                label = own
            picture[here] = 2 * label + (kind == "video")
            source[here] = at
        for look in looks:
            self._waiting.discard(look)
        made = Images.of(visual, picture[visual], source[visual] if known else None, shared, sequence)
        made.looks = tuple(looks) if known else ()
        return made

    def unseen(self, around: bool) -> None:
        """The language model runs in a pass that brought no placeholders; ``around``: within the model's own forward pass.

        Raises:
            ValueError: pictures were encoded, and the language model is called past that.
        """
        if self._waiting and not around:
            raise ValueError(
                f"{type(self.anatomy.model).__name__} hands pictures to its language model outside its forward pass, where a "
                "sieve cannot follow"
            )

    def grid(self, images: Images, mask: Tensor) -> tuple[int, int] | None:
        """Rows and columns of a picture's tokens, where they lie on one grid that fits ``mask``, ``(I, n)`` bool."""
        grid = images.looks[0].grid() if len(images.looks) == 1 else None
        fits = grid is not None and mask.shape[1] == grid[0] * grid[1] and bool(mask.all())
        return grid if fits else None

    def signals(self, stream: Stream, heard: bool, strange: Callable[[], str]) -> dict[str, Any]:
        """What it said, for the tokens still in the stream: crop, frame and spot, and encoder signals by layer (``heard``).

        Args:
            strange: says why features are not known.
        """
        out: dict[str, Any] = self._places(stream)
        if not heard:
            return out
        looks = stream.images.looks
        for name in {n for look in looks for n in look.seen}:
            for layer in {i for look in looks for i in look.seen.get(name, ())}:
                if any(layer not in look.seen.get(name, ()) for look in looks):
                    self._missing(name, "only some of its pictures come with it")
                    continue
                try:
                    rows = torch.cat([look.tokens_of(look.seen[name][layer]) for look in looks])
                except Unmapped as error:
                    self._missing(name, str(error))
                    continue
                laid = stream.reduction.take(stream.images.lay(rows.nan_to_num(0.0)))
                out.setdefault(name, {})[layer] = laid if name in ("keys", "values") else laid.movedim(1, -1)
        if "entropy" in out:
            out["entropy"] = out["entropy"][0]
        wanted = {n for watch in self.watches for n in watch.wanted()}
        if looks and wanted and not any(wanted & look.seen.keys() for look in looks):
            raise guards.refusal("unheard", signals=" and ".join(sorted(wanted)))
        if not looks:
            for name in {n for watch in self.watches for need in self.needs for n in watch.names(need)}:
                self._missing(name, strange())
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
        looks = stream.images.looks
        sheets = [look.sheet for look in looks]
        if not sheets or any(s is None for s in sheets):
            return {}
        images, device = stream.images, stream.index.device
        count = [len(look.grids) for look in looks if look.grids is not None]
        shifted = [s[0] + (s[0] >= 0) * sum(count[:i]) for i, s in enumerate(sheets) if s is not None]
        sheet = images.lay(torch.cat(shifted).to(device) + 1) - 1
        spot = images.lay(torch.cat([s[1] for s in sheets if s is not None]).to(device))
        film = torch.cat([torch.full((k.tokens,), k.kind == "video") for k in looks]).to(device)
        video = images.lay(film) & (sheet >= 0)
        still = images.mask & ~images.lay(film)
        first = torch.where(sheet >= 0, sheet, sheet.max()).amin(1, keepdim=True)
        number = torch.where(sheet >= 0, sheet - first, -1)
        tiled = any(self._tiled(look) for look in looks)
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

    def _tiled(self, look: EncoderPass) -> bool:
        config: Any = self.anatomy.model.config
        return look.kind == "image" and config.model_type in TILED


def around(base: Any, name: str, call: Callable[..., Any]) -> list[Detach]:
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
