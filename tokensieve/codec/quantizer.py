"""Quantizer: the one contract of everything that turns vectors into codes."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from tokensieve.codec import packing
from tokensieve.codec.codes import Codes

Self = TypeVar("Self", bound="Quantizer")


class Found(NamedTuple):
    """What a quantizer finds for T tokens: indices ``(T, C)``, values ``(T, width)`` straight-through, losses by name."""

    indices: Tensor
    values: Tensor
    losses: dict[str, Tensor]


class Quantizer(nn.Module):
    """Turns vectors ``(B, N, D)`` into C codes each; channels stand last, always.

    One of your own implements :meth:`nearest` and :meth:`table`, and where it needs them :meth:`squash`, :meth:`losses`,
    :meth:`start`, :meth:`learn` and :meth:`set_from`. They see real tokens alone, as float32 ``(T, width)``: masks, dtypes,
    autocast, bad input and the straight-through gradient are dealt with here. ``@register_quantizer("name")`` gives it its name,
    ``tokensieve.testing.check_quantizer`` checks it.

    Args:
        levels: how many codes each component has.
        width: dimensions of the space in which codes lie.
        dim: D of what is quantized; another one than ``width`` adds linear maps in and out.

    Attributes:
        levels: as given.
        dim: D.
        config: by what :func:`tokensieve.quantizer` made it: its name and options, as JSON can hold them.
        reencodes: whether a value is nearest to itself. Not of sums, where other summands may come as near.
        aligned: whether code n stands for token n; then ``indices`` are ``(B, N, C)``. Else there are as many as its class says,
            and a mask holds whole rows.
        posthoc: whether it is set from the values of a finished model (:meth:`fit`), and no model is trained with it.
    """

    reencodes = True
    aligned = True
    posthoc = False
    loss_names: tuple[str, ...] = ()

    def __init__(self, levels: tuple[int, ...], width: int, dim: int | None = None):
        super().__init__()
        self.levels, self.width = tuple(levels), width
        self.dim = width if dim is None else whole("dim", dim)
        self.config: dict[str, Any] = {}
        mapped = self.dim != width
        self.project_in = nn.Linear(self.dim, width) if mapped else nn.Identity()
        self.project_out = nn.Linear(width, self.dim) if mapped else nn.Identity()

    @property
    def bits(self) -> float:
        """Bits of a token, stored plainly."""
        return sum(math.log2(n) for n in self.levels)

    def forward(self, z: Tensor, mask: Tensor | None = None, generator: Generator | None = None) -> Codes:
        """Codes of ``z``.

        Args:
            z: ``(B, N, D)``, any float dtype. Codes are found in float32 whatever autocast says.
            mask: ``(B, N)`` bool, True where there is a token. What stands elsewhere touches nothing, NaN included.
            generator: where what is drawn in training (starts, revival) comes from.

        Raises:
            ValueError: a wrong shape or dtype, or a token that is not finite; nothing has changed then.
        """
        every = mask is None
        mask = checked(z, mask, self.dim)
        every = every or bool(mask.all())
        x = z.flatten(0, 1) if every else z[mask]
        if not finite(x):
            raise ValueError(
                f"{_first_bad(z, mask)} is not finite; mend it, or leave the token out by mask=. Nothing was changed"
            )
        with torch.autocast(z.device.type, enabled=False):
            indices, values, losses = self._found(x.float(), generator)
        shape = (len(z), z.shape[1])
        if every:
            indices, values = indices.view(*shape, len(self.levels)), values.view(*shape, self.dim)
            return Codes(indices, values.to(z.dtype), mask, self.levels, losses)
        all_indices = indices.new_full((*shape, len(self.levels)), -1)
        all_indices[mask] = indices
        all_values = z.new_zeros(*shape, self.dim)
        all_values[mask] = values.to(z.dtype)
        return Codes(all_indices, all_values, mask, self.levels, losses)

    def lookup(self, indices: Tensor) -> Tensor:
        """Values ``(B, N, D)`` float32 of indices ``(B, N, C)``, 0 where they are -1.

        Raises:
            ValueError: an index out of range, or another dtype or number of components.
        """
        self.check_indices(indices)
        there = indices[..., 0] >= 0
        with torch.autocast(indices.device.type, enabled=False):
            values = linear(self.project_out, self.restore(self.table(indices[there])))
        out = values.new_zeros(*there.shape, self.dim)
        out[there] = values
        return out

    def check_indices(self, indices: Tensor) -> None:
        """Refuse what :meth:`lookup` would not know."""
        packing.check_indices(indices, self.levels)

    def pack(self, indices: Tensor) -> Tensor:
        """One int64 a token ``(B, N)``, -1 where there is none; the first component counts least.

        Raises:
            ValueError: a token has more than 63 bits, or an index is out of range.
        """
        return packing.pack(indices, self.levels)

    def unpack(self, flat: Tensor) -> Tensor:
        """The reverse of :meth:`pack`."""
        return packing.unpack(flat, self.levels)

    @torch.no_grad()
    def fit(self: Self, z: Tensor, mask: Tensor | None = None, generator: Generator | None = None) -> Self:
        """Set what is set from data (k-means, quantiles) from all of ``z`` at once; quantizers without such take no notice."""
        mask = checked(z, mask, self.dim)
        x = z[mask].float()
        if not finite(x):
            raise ValueError(f"{_first_bad(z, mask)} is not finite; nothing was changed")
        if len(x):
            self.set_from(self.squash(linear(self.project_in, x)), generator)
        return self

    def neighbours(self, indices: Tensor, generator: Generator | None = None) -> Tensor:
        """For each token of ``(T, C)`` another code whose value is near: one component, drawn, is moved by one level."""
        shape, device = (len(indices), 1), indices.device
        at = torch.randint(len(self.levels), shape, generator=generator, device=device)
        step = torch.randint(2, shape, generator=generator, device=device) * 2 - 1
        most = torch.tensor(self.levels, device=indices.device)[at] - 1
        held = indices.gather(1, at)
        step = torch.where((held + step < 0) | (held + step > most), -step, step)
        return indices.scatter(1, at, held + step)

    # ---- what a quantizer is ------------------------------------------------------------------------------------------

    def nearest(self, u: Tensor) -> Tensor:
        """Indices ``(T, C)`` of points ``(T, width)`` of the space in which codes lie."""
        raise NotImplementedError

    def table(self, indices: Tensor) -> Tensor:
        """Values ``(T, width)`` float32 of indices ``(T, C)``, all in range."""
        raise NotImplementedError

    def squash(self, x: Tensor) -> Tensor:
        """What goes in as points of the space in which codes lie (on the sphere, between bounds)."""
        return x

    def restore(self, values: Tensor) -> Tensor:
        """The way back for values, where they are told otherwise than codes are compared (scales)."""
        return values

    def losses(self, u: Tensor, values: Tensor) -> dict[str, Tensor]:
        """Losses in training, by name: all of ``loss_names``."""
        return {}

    def start(self, u: Tensor, generator: Generator | None) -> None:
        """Called in training before codes are looked for."""

    def learn(self, u: Tensor, indices: Tensor, values: Tensor, generator: Generator | None) -> None:
        """Called in training once codes are found."""

    def set_from(self, u: Tensor, generator: Generator | None) -> None:
        """What :meth:`fit` does, with points ``(T, width)``."""

    def assign(self, x: Tensor, generator: Generator | None) -> Found:
        """Codes of vectors ``(T, width)``, T at least 1."""
        u = self.squash(x)
        if self.training:
            with torch.no_grad():
                self.start(u.detach(), generator)
        with torch.no_grad():
            indices = self.nearest(u.detach())
        values = self.table(indices)
        if not self.training:
            return Found(indices, self.restore(straight_through(values, u)), {})
        losses = self.losses(u, values)
        with torch.no_grad():
            self.learn(u.detach(), indices, values.detach(), generator)
        return Found(indices, self.restore(straight_through(values, u)), losses)

    def _found(self, x: Tensor, generator: Generator | None) -> Found:
        if not len(x):
            zero = x.sum()  # 0, and a loss of it can be differentiated
            losses = dict.fromkeys(self.loss_names, zero) if self.training else {}
            indices = torch.empty(0, len(self.levels), dtype=torch.int64, device=x.device)
            return Found(indices, x.new_empty(0, self.dim), losses)
        found = self.assign(linear(self.project_in, x), generator)
        return found._replace(values=linear(self.project_out, found.values))


def straight_through(values: Tensor, u: Tensor) -> Tensor:
    """Exactly ``values``, with the gradient of ``u``."""
    return values.detach() + (u - u.detach()) if u.requires_grad else values.detach()


def linear(layer: nn.Module, x: Tensor) -> Tensor:
    """A linear map in float32 whatever dtype its parameters have; identities as they are."""
    if not isinstance(layer, nn.Linear):
        return x
    return F.linear(x, layer.weight.float(), layer.bias.float())


def checked(z: Tensor, mask: Tensor | None, dim: int) -> Tensor:
    """The mask, all True where none is given.

    Raises:
        ValueError: ``z`` or the mask is of another shape or dtype than can be.
    """
    if z.dim() != 3 or z.shape[2] != dim:
        raise ValueError(f"z of shape {tuple(z.shape)}; it must be (B, N, {dim}), channels last")
    if not z.is_floating_point():
        raise ValueError(f"z of dtype {z.dtype}; it must be a float dtype")
    if mask is None:
        return torch.ones(z.shape[:2], dtype=torch.bool, device=z.device)
    if mask.dtype != torch.bool or mask.shape != z.shape[:2]:
        raise ValueError(
            f"mask of dtype {mask.dtype} and shape {tuple(mask.shape)}; it must be bool {tuple(z.shape[:2])}, "
            "True where there is a token"
        )
    return mask


def finite(x: Tensor) -> bool:
    """Whether all values are finite."""
    # A sum of finite values may overflow, one of others is never finite; it costs a third of looking at each.
    return math.isfinite(x.detach().sum()) or bool(x.isfinite().all())


def _first_bad(z: Tensor, mask: Tensor) -> str:
    at = tuple((~z.isfinite() & mask[..., None]).nonzero()[0].tolist())
    return f"z{list(at)}={float(z[at])}"


def whole(name: str, value: Any, lo: int = 1) -> int:
    """An option that is a whole number.

    Raises:
        ValueError: it is none, or below ``lo``.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < lo:
        raise ValueError(f"{name}={value!r}; it must be a whole number, at least {lo}")
    return value


def wholes(name: str, values: Any, lo: int = 1) -> tuple[int, ...]:
    """An option that is several whole numbers.

    Raises:
        ValueError: it is none, or one of them is below ``lo``.
    """
    if not isinstance(values, (tuple, list)) or not values:
        raise ValueError(f"{name}={values!r}; it must be a tuple of whole numbers, each at least {lo}")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int) or value < lo:
            raise ValueError(f"{name}={tuple(values)!r}; each must be a whole number, at least {lo}")
    return tuple(values)


def number(name: str, value: Any, lo: float = 0.0, hi: float = math.inf) -> float:
    """An option that is a number from ``lo`` to ``hi``.

    Raises:
        ValueError: it is none, or not between them.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not lo <= value <= hi or math.isinf(value):
        span = f"at least {lo}" if hi == math.inf else f"{lo} to {hi}"
        raise ValueError(f"{name}={value!r}; it must be a number, {span}")
    return float(value)
