"""Product: channels split among quantizers of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor, nn

from tokensieve.codec.quantizer import Found, Quantizer, whole, wholes
from tokensieve.codec.registry import quantizer, register_quantizer


class Several(Quantizer):
    """What product and residual share: quantizers whose components stand one behind the other."""

    def __init__(self, made: list[Quantizer], width: int):
        for one in made:
            if not one.aligned or one.dim != one.width:
                raise ValueError(
                    f"of={one.config.get('name')!r} cannot be a part: it has maps of its own, or its codes stand for no token"
                )
        super().__init__(tuple(n for one in made for n in one.levels), width)
        self.made = nn.ModuleList(made)
        self.counts = [len(one.levels) for one in made]
        self.loss_names = tuple(dict.fromkeys(name for one in made for name in one.loss_names))
        self.posthoc = any(one.posthoc for one in made)

    def stages(self) -> list[Quantizer]:
        """The quantizers, in order."""
        return list(self.made)  # type: ignore[arg-type]

    def neighbours(self, indices: Tensor, generator: Generator | None = None) -> Tensor:
        """For each token another code: the components of one quantizer, drawn, become those of a neighbour."""
        at = torch.randint(len(self.made), (len(indices),), generator=generator, device=indices.device)
        parts = list(indices.split(self.counts, 1))
        for i, one in enumerate(self.stages()):
            parts[i] = torch.where((at == i)[:, None], one.neighbours(parts[i], generator), parts[i])
        return torch.cat(parts, 1)


@register_quantizer("product", kind="PQ", systems=(193, 324))
class Product(Several):
    """Product quantization: channels are split, and each part is quantized by itself (UniTok, arXiv 2502.20321).

    Args:
        groups: how many parts of equal width ``dim / groups``; each has a quantizer of its own.
        dim: D.
        of: the quantizer's name; ``options`` are its options but ``dim``.
        dims: widths of the parts where they are not equal, in place of ``groups`` and ``dim``.
    """

    def __init__(self, *, of: str = "vq", groups: int = 0, dim: int = 0, dims: tuple[int, ...] = (), **options: Any):
        if dims:
            dims = wholes("dims", dims)
        elif whole("dim", dim) % whole("groups", groups):
            raise ValueError(f"groups={groups} do not divide dim={dim} evenly")
        else:
            dims = (dim // groups,) * groups
        super().__init__([quantizer(of, dim=width, **options) for width in dims], sum(dims))
        self.dims = dims

    def assign(self, x: Tensor, generator: Generator | None) -> Found:
        parts = zip(self.stages(), x.split(self.dims, 1), strict=True)
        found = [one.assign(part, generator) for one, part in parts]
        return Found(torch.cat([f.indices for f in found], 1), torch.cat([f.values for f in found], 1), added(found))

    def squash(self, x: Tensor) -> Tensor:
        parts = zip(self.stages(), x.split(self.dims, 1), strict=True)
        return torch.cat([one.squash(part) for one, part in parts], 1)

    def nearest(self, u: Tensor) -> Tensor:
        parts = zip(self.stages(), u.split(self.dims, 1), strict=True)
        return torch.cat([one.nearest(part) for one, part in parts], 1)

    def table(self, indices: Tensor) -> Tensor:
        parts = zip(self.stages(), indices.split(self.counts, 1), strict=True)
        return torch.cat([one.table(part) for one, part in parts], 1)

    def restore(self, values: Tensor) -> Tensor:
        parts = zip(self.stages(), values.split(self.dims, 1), strict=True)
        return torch.cat([one.restore(part) for one, part in parts], 1)

    def set_from(self, u: Tensor, generator: Generator | None) -> None:
        for one, part in zip(self.stages(), u.split(self.dims, 1), strict=True):
            one.set_from(part, generator)


def added(found: list[Found]) -> dict[str, Tensor]:
    """The losses of several, added by name."""
    out: dict[str, Tensor] = {}
    for name, value in ((n, v) for f in found for n, v in f.losses.items()):
        out[name] = out[name] + value if name in out else value
    return out
