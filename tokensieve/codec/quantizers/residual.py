"""Residual: stages that each quantize what those before left."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from tokensieve.codec import packing
from tokensieve.codec.quantizer import Found, number, straight_through, whole
from tokensieve.codec.quantizers.product import Product, Several, added
from tokensieve.codec.registry import quantizer, register_quantizer


@register_quantizer("residual", kind="RVQ", systems=(211,))
class Residual(Several):
    """Residual quantization: each stage quantizes what is left of those before (SoundStream, arXiv 2107.03312).

    The gradient goes straight through the sum once, not once a stage. :meth:`lookup` takes the indices of the first stages too:
    ``q.lookup(codes.indices[..., :2])``.

    Args:
        stages: how many.
        dim: D; that of each stage, unless the quantizer has no such option.
        of: the quantizer's name; ``options`` are its own.
        shared: whether all stages use one quantizer.
        gain: by how much more a stage magnifies what is left than the one before it: for bounded values (``fsq``: its levels - 1,
            ``lfq``: 2); learnt codebooks need none.
    """

    reencodes = False

    def __init__(
        self, *, stages: int, dim: int, of: str = "vq", shared: bool = False, gain: float = 1.0, **options: Any
    ):
        count = whole("stages", stages)
        if of not in ("fsq", "lfq", "bsq"):
            options["dim"] = dim
        made = [quantizer(of, **options) for _ in range(1 if shared else count)]
        if made[0].width != whole("dim", dim):
            raise ValueError(f"dim={dim}; {of} of these options has {made[0].width}")
        super().__init__(made * count if shared else made, dim)
        self.shared = shared
        self.gain = number("gain", gain)
        if not gain:
            raise ValueError("gain=0; it must be above 0")

    def assign(self, x: Tensor, generator: Generator | None) -> Found:
        total, found = torch.zeros_like(x), []
        for i, one in enumerate(self.stages()):
            scale = self.gain**i
            # Losses of later stages draw on x too, so their input has its gradient.
            found.append(one.assign((x - total) * scale, generator))
            total = total + found[-1].values.detach() / scale
        return Found(torch.cat([f.indices for f in found], 1), straight_through(total, x), added(found))

    def nearest(self, u: Tensor) -> Tensor:
        out = []
        for i, one in enumerate(self.stages()):
            scale = self.gain**i
            out.append(one.nearest(one.squash(u * scale)))
            u = u - one.restore(one.table(out[-1])) / scale
        return torch.cat(out, 1)

    def table(self, indices: Tensor) -> Tensor:
        parts = indices.split(self.counts[: self._stages_in(indices)], 1)
        values = [one.restore(one.table(part)) for one, part in zip(self.stages(), parts, strict=False)]
        return torch.stack([value / self.gain**i for i, value in enumerate(values)]).sum(0)

    def check_indices(self, indices: Tensor) -> None:
        width = sum(self.counts[: self._stages_in(indices)])
        packing.check_indices(indices, self.levels[:width])

    def set_from(self, u: Tensor, generator: Generator | None) -> None:
        seen: list[Tensor] = []
        for i, one in enumerate(self.stages()):
            scale = self.gain**i
            v = one.squash(u * scale)
            # What all stages share is set from what each of them sees.
            seen = [*seen, v] if self.shared else [v]
            one.set_from(torch.cat(seen), generator)
            u = u - one.restore(one.table(one.nearest(v))) / scale

    def _stages_in(self, indices: Tensor) -> int:
        """How many stages these components are; all where they end within one, so that a check refuses them."""
        ends = [sum(self.counts[: i + 1]) for i in range(len(self.counts))]
        return ends.index(indices.shape[-1]) + 1 if indices.dim() and indices.shape[-1] in ends else len(ends)


@register_quantizer("depths", kind="RVQ", systems=(217,))
class Depths(Product):
    """Two depths of one encoder, each with residual codebooks of its own (DualToken, arXiv 2503.14324).

    Channels are the shallow layer's (pixels), then the deep layer's (meaning); each has losses of its own, and the model gives
    each its own objective.

    Args:
        dims: channels of each depth.
        codes: of a stage.
        stages: of each depth.
        options: as of ``vq``.
    """

    def __init__(self, *, dims: tuple[int, ...], codes: int, stages: int = 1, **options: Any):
        super().__init__(of="residual", dims=dims, stages=stages, codes=codes, **options)
        self.reencodes = stages == 1
