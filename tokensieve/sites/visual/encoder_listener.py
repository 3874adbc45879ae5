"""The listener: what the encoder says while it encodes pictures, remembered by the features that come out."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

from torch import Tensor, nn

from tokensieve.core.needs import Need
from tokensieve.parts import score
from tokensieve.sites.encoder.site import EncoderSite
from tokensieve.sites.encoder.state import EncoderReduction
from tokensieve.sites.encoder.watch import Heard, Watch
from tokensieve.sites.model import checkpointing
from tokensieve.sites.model.blocks import Stack
from tokensieve.sites.model.calls import Detach
from tokensieve.sites.model.clock import Clock
from tokensieve.sites.model.compatibility import pixels_in
from tokensieve.sites.model.structure import Anatomy
from tokensieve.sites.visual.feature_memory import Remembered, features_of
from tokensieve.sites.visual.layout import EncoderPass, rowwise
from tokensieve.sites.visual.pictures import Pictures

KINDS = ("image", "video")
SHARED = "_tokensieve_shared_encoding"
"""Where a model that is given the same pictures under several plans holds what its encoder made of them."""


@dataclass
class Encoding:
    """A call that encodes pictures, while it is under way.

    Attributes:
        shapes: of the states in front of the encoder's first block, call by call.
        packed: how the model joined crops into pictures; None where it did not.
    """

    shapes: list[tuple[int, ...]] = field(default_factory=list)
    packed: dict[str, Any] | None = None


class Listener:
    """Listens to the encoder of a vision-language model.

    Models encode pictures in ``get_image_features`` and ``get_video_features``, called by `generate`, by the forward pass or by
    the caller; each call is an :class:`EncoderPass`. It belongs to the features that come out, and is found again by them.
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
        out = self.listen()
        for kind in KINDS:
            out += around(self.anatomy.base, f"get_{kind}_features", functools.partial(self.look, kind))
        return out

    def listen(self) -> list[Detach]:
        """Hear what the encoder says in calls that come through :meth:`look`."""
        out = [detach for watch in self.watches for detach in watch.attach()]
        out += around(self.anatomy.base, "pack_image_features", self._pack)
        for stack in self.towers:
            out += checkpointing.attach(stack)
            out.append(stack.layers[0].register_forward_pre_hook(self._shape(stack), with_kwargs=True).remove)
        return out

    def look(self, kind: str, encode: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        """A call of ``encode``, which is heard; where what the encoder says is shared, it is told that."""
        if self._encoding is not None:  # some encode videos through the function for images
            return encode(*args, **kwargs)
        shared = self.anatomy.base.__dict__.get(SHARED)
        if shared is not None and self.encoder is None:
            known, seconds = shared.heard(self.needs, kind, args, kwargs)
            self.clock.seconds += seconds if self.clock.on else 0.0
            if known.look is not None:
                self._arrived(known.look, known.out)
            return known.out
        encode = encode if shared is None else shared.plain[kind]
        now = self._encoding = Encoding()
        made: list[EncoderReduction] = []
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
            self._arrived(look, out)
        return out

    def _arrived(self, look: EncoderPass, out: Any) -> None:
        every = self.remembered.add(look, out, features_of(out))
        if self._inside is not None:
            self._inside[look.kind] = every
        else:
            self._waiting.add(look)

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
                parts = [rowwise(name, c) for c in calls]
                if self.encoder is not None and self.encoder.stack is stack:
                    parts = [e.widen(p, stack.specials) for e, p in zip(look.encoded, parts, strict=True)]
                out.setdefault(name, {})[layer] = look.entered(name, parts)
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

    # ---- a pass of the language model ------------------------------------------------------------------------------------

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

    def placed(self, look: EncoderPass) -> None:
        """The pictures of a call have found their places in a prompt."""
        self._waiting.discard(look)


def around(base: Any, name: str, call: Callable[..., Any]) -> list[Detach]:
    """Have ``call`` stand around a method of one module; [] where it has no such method."""
    plain = getattr(base, name, None)
    if plain is None:
        return []

    @functools.wraps(plain)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return call(plain, args, kwargs)

    held = base.__dict__.get(name)

    def detach() -> None:
        base.__dict__.pop(name)
        if held is not None:
            base.__dict__[name] = held

    base.__dict__[name] = wrapped
    return [detach]


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
