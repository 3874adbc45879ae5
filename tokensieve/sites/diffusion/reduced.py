"""Reduced: a module called with fewer tokens, all that it is given per token being gathered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tokensieve.core.reduction import Reduction
from tokensieve.parts import select
from tokensieve.sites.diffusion import per_token


@dataclass(frozen=True)
class Row:
    """The tokens of a module's row: ``n`` of the latents, and ``extra`` of a text, in front of those or behind them.

    Attributes:
        inside: whether the extra ones stand in the same tensor; otherwise they are a stream of their own.
        grid: that of the n.
    """

    n: int
    extra: int = 0
    extra_first: bool = True
    inside: bool = False
    grid: tuple[int, int] | None = None

    def image(self, x: Tensor, n: int | None = None) -> Tensor:
        """The n tokens of the latents."""
        n = self.n if n is None else n
        if not self.inside or self.extra == 0:
            return x
        return x[:, self.extra :] if self.extra_first else x[:, :n]

    def join(self, x: Tensor, image: Tensor) -> Tensor:
        """The row x with other tokens of the latents; those of the text stay."""
        if not self.inside or self.extra == 0:
            return image
        n = x.shape[1] - self.extra
        return torch.cat([x[:, : self.extra], image] if self.extra_first else [image, x[:, n:]], 1)


def apply(r: Reduction, x: Tensor) -> Tensor:
    """Whole vectors move several times as fast as single elements."""
    return select.take(x, r.kept) if r.drops else r.apply(x)


def call(plain: Callable[..., Any], given: Mapping[str, Any], own: Sequence[str], r: Reduction, row: Row) -> Any:
    """Call a module with what is left.

    Args:
        given: its arguments by name, of which ``own`` are reduced already or are not per token; every other one that is per
            token is gathered here. Where rows that keep different tokens share one (rotary tables), they go one after the other.
    """
    batch, sizes = r.batch, (row.n, row.n + row.extra)
    takes = per_token.places(r.kept, row.n, row.extra, row.extra_first)
    rest = {name: value for name, value in given.items() if name not in own}
    shared = any(
        per_token.unbatched(t, axis)
        for key, held in rest.items()
        for name, value in _named(key, held)
        for t in _tensors(per_token.of_latents(value))
        if (axis := per_token.axes(name, t, batch, sizes))
    )
    if not shared or bool((r.kept == r.kept[:1]).all()):
        return plain(**{**given, **{k: _gathered(k, v, batch, sizes, takes) for k, v in rest.items()}})
    outs, order = [], []
    for members in _groups(r.kept):
        of_group = per_token.places(r.kept[members], row.n, row.extra, row.extra_first)
        pick = partial(_rows, members, batch)
        some = {k: per_token.each(v, pick) for k, v in given.items()}
        few = {k: _gathered(k, some[k], len(members), sizes, of_group) for k in rest}
        outs.append(plain(**{**some, **few}))
        order.append(members)
    back = torch.cat(order).argsort()
    if isinstance(outs[0], Tensor):
        return torch.cat(outs)[back]
    return type(outs[0])(
        torch.cat(parts)[back] if isinstance(parts[0], Tensor) else parts[0] for parts in zip(*outs, strict=True)
    )


def _gathered(name: str, value: Any, batch: int, sizes: tuple[int, ...], takes: Any) -> Any:
    if isinstance(value, dict):
        return {k: _gathered(f"{name} {k}", v, batch, sizes, takes) for k, v in value.items()}
    ours = per_token.of_latents(value)
    few = per_token.each(ours, lambda t: per_token.gather(t, per_token.axes(name, t, batch, sizes), takes))
    return few if ours is value else type(value)((few, value[1]))


def _named(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """An argument, or what a dict holds, each behind the names it stands under."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _named(f"{name} {key}", part)
    else:
        yield name, value


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif type(value) in (tuple, list):
        for v in value:
            yield from _tensors(v)


def _rows(members: Tensor, batch: int, t: Tensor) -> Tensor:
    return t[members] if t.dim() > 1 and t.shape[0] == batch else t


def _groups(kept: Tensor) -> list[Tensor]:
    """Rows that keep the same tokens."""
    _, inverse = torch.unique(kept, dim=0, return_inverse=True)
    return [(inverse == i).nonzero()[:, 0] for i in range(int(inverse.max()) + 1)]
