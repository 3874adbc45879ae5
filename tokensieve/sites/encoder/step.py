"""Step: one reduction of the tokens that may leave, as one of the whole sequence."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from tokensieve.core.reduction import Reduction
from tokensieve.parts.select import compact, take
from tokensieve.sites.encoder.roles import Layout


@dataclass(frozen=True)
class Step:
    """One reduction of the tokens that may leave, as one of the whole sequence.

    Attributes:
        inner: the reduction.
        layout: of the sequence that it reduces.
        kept: ``(B, m)`` long, from where in that sequence each token of the next one comes; owner: ``(B, L)`` long, where in the
            next one each token is, -1 where it left.
        slots: ``(B, M)`` long, where in the next one each slot of ``inner`` stands.
        real: ``(B, m)`` bool, False at padding; None where there is none.
        whole: of all tokens; None where those that stay lie scattered, or are mixed by a matrix.
    """

    inner: Reduction
    layout: Layout
    kept: Tensor
    owner: Tensor
    slots: Tensor
    real: Tensor | None
    whole: Reduction | None = None

    @classmethod
    def of(cls, inner: Reduction, layout: Layout) -> Step:
        """From a reduction of the tokens at ``layout.place``."""
        front, back, m = layout.front, layout.back, inner.m
        device, batch = inner.kept.device, inner.batch
        if layout.place is None:
            ahead = torch.arange(front, device=device).expand(batch, -1)
            tail = torch.arange(layout.length - back, layout.length, device=device).expand(batch, -1)
            moved = inner.owner + front
            moved = moved.masked_fill(inner.owner < 0, -1) if inner.loses else moved
            kept, owner = inner.kept + front, moved
            if front or back:
                kept = torch.cat([ahead, kept, tail], 1)
                owner = torch.cat([ahead, owner, tail - layout.count + m], 1)
            mask = pad(inner.mask, (front, back), value=True)
            weight = None if inner.weight is None else pad(inner.weight, (front, back), value=1.0)
            whole = None if inner.matrix is not None else Reduction(layout.length, kept, mask, owner, weight, None)
            slots = torch.arange(front, front + m, device=device).expand(batch, -1)
            return cls(inner, layout, kept, owner, slots, None if inner.even else mask, whole)
        assert layout.valid is not None
        batch, length = len(layout.place), layout.length
        row = torch.arange(batch, device=device)[:, None]
        free = torch.zeros(batch, length, dtype=torch.bool, device=device)
        free[row.expand_as(layout.place)[layout.valid], layout.place[layout.valid]] = True
        real = torch.ones_like(free) if layout.real is None else layout.real
        stays = real & ~free
        slots = layout.place.gather(1, inner.kept)
        stays[row.expand_as(slots)[inner.mask], slots[inner.mask]] = True
        kept, held = compact(stays)
        order = stays.long().cumsum(1) - 1
        # A slot's token is found by its place; those that went to it are, too.
        target = layout.place.gather(1, inner.kept.gather(1, inner.owner.clamp(min=0)))
        target = torch.where((inner.owner >= 0) & layout.valid, target, -1)
        source = torch.arange(length, device=device).expand(batch, -1).clone()
        source[row.expand_as(target)[layout.valid], layout.place[layout.valid]] = target[layout.valid]
        owner = torch.where((source >= 0) & real, order.gather(1, source.clamp(min=0)), -1)
        return cls(inner, layout, kept, owner, order.gather(1, slots), None if bool(held.all()) else held)

    @property
    def averages(self) -> bool:
        """Whether each slot is a token, or a mean of tokens."""
        inner = self.inner
        if inner.weight is None:
            return inner.matrix is None
        total = torch.zeros(inner.kept.shape, device=inner.kept.device, dtype=inner.weight.dtype)
        total.scatter_add_(1, inner.owner.clamp(min=0), inner.weight)
        return bool(((total - 1).abs() < 1e-4)[inner.mask].all())

    @property
    def length(self) -> int:
        """Tokens of the next sequence."""
        return self.kept.shape[1]

    def apply(self, x: Tensor) -> Tensor:
        """``(B, L, D)`` -> ``(B, m, D)``."""
        inner, layout = self.inner, self.layout
        if self.whole is not None:
            return self.whole.apply(x)
        if layout.place is None:
            tokens = x[:, layout.front : layout.length - layout.back]
            parts = (x[:, : layout.front], inner.apply(tokens), x[:, layout.length - layout.back :])
            return torch.cat([p for p in parts if p.shape[1]], 1)
        out = take(x.contiguous(), self.kept)
        if inner.drops:
            return out
        merged = inner.apply(take(x.contiguous(), layout.place))
        row = torch.arange(len(out), device=x.device)[:, None].expand_as(self.slots)
        return out.index_put((row[inner.mask], self.slots[inner.mask]), merged[inner.mask])

    def spread(self, x: Tensor) -> Tensor:
        """``(B, m, D)`` -> ``(B, L, D)``: each token has what its slot has, those that left zeros."""
        out = take(x.contiguous(), self.owner.clamp(min=0))
        return (
            out.masked_fill(self.owner[..., None] < 0, 0.0) if self.inner.loses or self.layout.real is not None else out
        )

    def next(self) -> Layout:
        """The layout of the next sequence."""
        layout = self.layout
        if layout.place is None and self.real is None:
            return Layout(self.length, layout.front, layout.back)
        return Layout(self.length, 0, 0, self.slots, self.inner.mask, self.real)
