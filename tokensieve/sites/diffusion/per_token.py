"""Arguments per token: which arguments of a call have a row for each token, and what is left of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

NAMED = ("rotary", "freqs", "rope", "mask", "ids", "pos")
"""What the names of such arguments hold."""


def places(kept: Tensor, n: int, extra: int, extra_first: bool) -> Callable[[int], Tensor | None]:
    """For the size of an axis, the positions ``(B, M)`` to take along it: of n image tokens, or of those with ``extra`` others
    beside them, which all stay; None for any other size."""
    import torch

    others = torch.arange(extra, device=kept.device).expand(len(kept), -1)
    both = torch.cat([others, kept + extra], 1) if extra_first else torch.cat([kept, others + n], 1)
    return {n: kept, n + extra: both}.get


def axes(name: str, x: Tensor, batch: int, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of an argument that are tokens, whose number is one of ``sizes``.

    Masks may have two. Of all others it is the first one behind the batch, or the first of all where there is no batch; the last
    axis holds numbers of a token.
    """
    if name.split()[-1].startswith("encoder"):  # of the text
        return ()
    called = any(part in name for part in NAMED)
    if "mask" in name:
        return tuple(i for i in range(1, x.dim()) if x.shape[i] in sizes)
    if x.dim() >= 3:
        # (B, N, ...), (1, N, ...), (B, heads, N, d): the first axis is a batch, unless it is tokens and no batch.
        found = [i for i in range(x.dim() - 1) if x.shape[i] in sizes and not (i == 0 and x.shape[0] == batch)]
        return tuple(found[:1]) if called or found[:1] == [1] else ()
    return (0,) if called and x.dim() == 2 and x.shape[0] in sizes else ()


def unbatched(x: Tensor, axis: tuple[int, ...]) -> bool:
    """Whether all rows of a batch share an argument, which has no axis for them or one of length 1."""
    return bool(axis) and (axis[0] == 0 or x.shape[0] == 1)


def gather(x: Tensor, axis: tuple[int, ...], take: Callable[[int], Tensor | None]) -> Tensor:
    """An argument with the tokens that are left; of one that all rows share, those of the first row of ``take``."""
    for i in axis:
        index = take(x.shape[i])
        assert index is not None
        if i == 0 or x.shape[0] == 1:
            x = x.index_select(i, index[0])
            continue
        shape = [1] * x.dim()
        shape[0], shape[i] = index.shape
        size = list(x.shape)
        size[i] = index.shape[1]
        x = x.gather(i, index.view(shape).expand(size))
    return x


def of_latents(value: Any) -> Any:
    """An argument without what is of the text alone: tables of angles come as (cosines, sines), or complex; two complex ones are
    those of the latents and those of the text."""
    pair = (
        type(value) in (tuple, list)
        and len(value) == 2
        and all(isinstance(v, Tensor) and v.is_complex() for v in value)
    )
    return value[0] if pair else value


def each(value: Any, act: Callable[[Tensor], Any]) -> Any:
    """A tensor, or a tuple, list or dict of them, after ``act``; all else as it is."""
    if isinstance(value, Tensor):
        return act(value)
    if isinstance(value, dict):
        return {k: each(v, act) for k, v in value.items()}
    if type(value) in (tuple, list):
        return type(value)(each(v, act) for v in value)
    return value
