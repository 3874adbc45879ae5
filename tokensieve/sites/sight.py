"""Sight: what the encoder tells, in one pass, about the images in front of the language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from tokensieve.needs import Need
from tokensieve.parts import score
from tokensieve.sites.anatomy import Anatomy
from tokensieve.sites.clock import Clock
from tokensieve.sites.encoder import Detach, EncoderSite, Watch
from tokensieve.sites.stream import Images, Stream


class Sight:
    """Listens to the encoder of a vision-language model, and lays out what it said as the prompt's images are grouped."""

    def __init__(self, anatomy: Anatomy, needs: Sequence[Need], encoder: EncoderSite | None, clock: Clock):
        self.anatomy, self.encoder = anatomy, encoder
        self.watch = Watch(anatomy.vision, needs, clock, (anatomy.feature_layer,))
        self._pixels: Tensor | None = None
        self._patches = any(need.name == "entropy" for need in needs)

    def attach(self) -> list[Detach]:
        root = self.anatomy.vision.root
        return [*self.watch.attach(), root.register_forward_pre_hook(self._look, with_kwargs=True).remove]

    def _look(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """The encoder starts: forget what it said before, note the shape of its input."""
        self.watch.seen.clear()
        pixels = kwargs.get("pixel_values", args[0] if args else None)
        self._pixels = pixels if isinstance(pixels, Tensor) and pixels.dim() == 4 else None

    def grid(self, mask: Tensor | None = None) -> tuple[int, int] | None:
        """Rows and columns of an image's tokens, from its pixels and the patch size; None where they do not lie on one grid.

        Args:
            mask: ``(I, n)`` bool, the tokens it has to fit.
        """
        patch = getattr(self.anatomy.vision.config, "patch_size", None)
        if not isinstance(patch, int) or self._pixels is None:
            return None
        grid = (self._pixels.shape[2] // patch, self._pixels.shape[3] // patch)
        fits = mask is None or (mask.shape[1] == grid[0] * grid[1] and bool(mask.all()))
        return grid if fits else None

    def entropy(self, stream: Stream) -> dict[str, Tensor]:
        """The entropy of each patch's pixels, where a stage asks for it and tokens are patches."""
        if not self._patches or self._pixels is None or self.grid() is None:
            return {}
        bits = score.entropy(self._pixels, self.anatomy.vision.config.patch_size)
        laid = _regroup("entropy", bits, stream.images)
        return {"entropy": stream.reduction.take(laid)}

    def signals(self, stream: Stream) -> dict[str, dict[int, Tensor]]:
        """Everything it said, by name and layer, for the tokens still in the stream."""
        out: dict[str, dict[int, Tensor]] = {}
        for name, layers in self.watch.seen.items():
            for layer, value in layers.items():
                axis = 1 if name in ("keys", "values") else -1
                tokens = value.movedim(axis, 1)
                if self.encoder is not None:
                    tokens = self.encoder.widen(tokens)
                laid = stream.reduction.take(_regroup(name, tokens, stream.images))
                out.setdefault(name, {})[layer] = laid.movedim(1, axis)
        return out


def _regroup(name: str, value: Tensor, images: Images) -> Tensor:
    """Signals of the encoder's images ``(I', n', ...)`` laid out as ``images`` groups them ``(I, n, ...)``."""
    held = int(images.mask.sum())
    if value.shape[:2] == images.place.shape:
        return value
    flat = value.flatten(0, 1)
    copies = held // flat.shape[0]
    if copies * flat.shape[0] != held:
        raise ValueError(
            f"the encoder gives {name} for {flat.shape[0]} tokens, the prompt holds {held} visual tokens; "
            "use a method that reads features only, such as 'divprune'"
        )
    out = flat.new_zeros(*images.place.shape, *flat.shape[1:])
    out[images.mask] = flat[images.repeated(copies)]
    return out
