"""State: what became of the tokens of one pass of an encoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokensieve.core.reduction import Reduction
from tokensieve.parts.select import compact, take
from tokensieve.sites.encoder.roles import Layout


@dataclass(frozen=True)
class Remaining:
    """The tokens that are there behind some block.

    Attributes:
        total: from the tokens that may leave to those of them that are left.
        owner: ``(B, L)`` long, where each token of the whole sequence is now, itself or the one it was merged into; -1 where it
            left.
        place: ``(B, m)`` long, where in the whole sequence each one stands, -1 at padding.
        slots: ``(B, M)`` long, where among those that are there each slot of ``total`` stands.
        left: how many parcels of :attr:`EncoderReduction.parcels` had left.
    """

    total: Reduction
    owner: Tensor
    place: Tensor
    slots: Tensor
    left: int


class EncoderReduction:
    """What became of the tokens of one pass of an encoder.

    Attributes:
        grid: rows and columns of the patches of each image; None where that is not known.
        layout: of the whole sequence; current: of the one that is there.
        total: from the tokens that may leave to those that are left so far; None in front of the first stage.
        targets: how many are to be left behind each of the site's blocks, a tensor ``(B,)`` each.
        by_length: what was there when the states held so many tokens, special ones included.
        score: what the method ranked by at first; None where nobody asked.
        parcels: tokens that left, in the state in which they did: places ``(B, d)``, -1 at padding, and states ``(B, d, D)``.
        shape: what is there now; None while all tokens are.
        bias: ``(B, m)``, what is added to attention to each token; None where nothing is.
        index: by a number of tokens, which of those each one is that is there.
        step: what leaves in the block that is running.
        calls: blocks that have run; tokens: in front of each.
        chained: whether blocks hand on more than states, so that some of it is of the tokens of an earlier block.
        restored: whether the states have their full length again.
    """

    def __init__(self, grid: tuple[int, int] | None, layout: Layout):
        self.grid, self.layout, self.current = grid, layout, layout
        self.total: Reduction | None = None
        self.targets: list[Tensor] = []
        self.by_length: dict[int, Remaining] = {}
        self.score: Tensor | None = None
        self.parcels: list[tuple[Tensor, Tensor]] = []
        self.shape: Remaining | None = None
        self.bias: Tensor | None = None
        self.index: dict[int, Tensor] = {}
        self.step: Step | None = None
        self.calls, self.tokens = 0, list[int]()
        self.chained = self.restored = False

    def at(self, index: int) -> int:
        """The block that is running: ``index``, or more where one module is called again and again."""
        return max(index, self.calls)

    def follow(self, step: Step, hidden: Tensor, proportional: bool) -> None:
        """Tokens leave.

        Args:
            hidden: ``(B, L, D)``, in the state in which they do; proportional: whether attention weighs the others by size.
        """
        assert self.total is not None
        batch, length = hidden.shape[:2]
        every = torch.arange(length, device=hidden.device).expand(batch, -1)
        place = every if self.shape is None else self.shape.place
        owner = every if self.shape is None else self.shape.owner
        self.total = self.total.then(step.inner)
        if not step.keeps:
            gone = (step.owner < 0) & (place >= 0)
            gone = gone if step.layout.real is None else gone & step.layout.real
            if bool(gone.any()):
                at, there = compact(gone)
                self.parcels.append((place.gather(1, at).masked_fill(~there, -1), take(hidden.contiguous(), at)))
        owner = torch.where(owner >= 0, step.owner.gather(1, owner.clamp(min=0)), -1)
        place = place.gather(1, step.kept)
        place = place if step.real is None else place.masked_fill(~step.real, -1)
        earlier = self.index if self.chained else {}
        self.index = {n: i.gather(1, step.kept) for n, i in earlier.items() if n != self.layout.count}
        self.index |= {length: step.kept, self.layout.length: place}
        if self.layout.place is None and step.real is None and self.layout.count != self.layout.length:
            self.index.setdefault(self.layout.count, self.total.kept)
        self.shape = Remaining(self.total, owner, place, step.slots, len(self.parcels))
        self.by_length[step.length] = self.shape
        self.current = step.next()
        self.bias = self.sizes().to(hidden.dtype) if proportional else None
        if step.real is not None and self.bias is None:
            zeros = torch.zeros(step.real.shape, dtype=hidden.dtype, device=hidden.device)
            self.bias = zeros.masked_fill(~step.real, torch.finfo(hidden.dtype).min)

    def stays(self) -> Tensor:
        """``(B, L)`` bool: the tokens of the whole sequence whose places are still there."""
        batch = 1 if self.total is None else self.total.batch
        out = torch.zeros(batch, self.layout.length, dtype=torch.bool)
        if self.shape is None:
            return ~out if self.layout.real is None else self.layout.real.cpu()
        place = self.shape.place.cpu()
        row = torch.arange(batch)[:, None].expand_as(place)
        out[row[place >= 0], place[place >= 0]] = True
        return out

    def averaged(self, x: Tensor) -> Tensor:
        """``(1, L, D)`` of each token's own -> ``(B, m, D)``, means of what stands behind each that is there."""
        assert self.shape is not None
        layout, owner = self.layout, self.shape.owner
        batch, m = owner.shape[0], self.shape.place.shape[1]
        held = (owner >= 0).to(x.dtype)
        at, rows = owner.clamp(min=0), x.expand(batch, layout.length, -1)
        count = x.new_zeros(batch, m).scatter_add_(1, at, held).clamp(min=1.0)
        total = x.new_zeros(batch, m, x.shape[-1]).scatter_add_(
            1, at[..., None].expand_as(rows), rows * held[..., None]
        )
        return total / count[..., None]

    def sizes(self) -> Tensor:
        """``(B, m)``: the logarithm of how many tokens each one stands for that is there; the least number at padding."""
        assert self.shape is not None
        assert self.total is not None
        place, sizes = self.shape.place, self.total.sizes()
        out = torch.zeros(place.shape, device=place.device)
        # Padding slots repeat the place of a row's last one.
        out.scatter_reduce_(1, self.shape.slots, sizes.log().masked_fill(~self.total.mask, 0.0), "amax")
        return out.masked_fill(place < 0, torch.finfo(out.dtype).min)

    def widen(self, x: Tensor, first: int) -> Tensor:
        """``(I, m, ...)`` recorded at some block -> ``(I, n, ...)``: each original token has what its slot had there.

        Args:
            first: special tokens around the patches, which ``x`` does not hold.
        """
        if self.total is None or x.shape[1] == self.total.n:
            return x
        flat = x.reshape(*x.shape[:2], -1)
        return self.by_length[first + x.shape[1]].total.restore(flat).reshape(x.shape[0], -1, *x.shape[2:])

    def restore(self, hidden: Tensor) -> Tensor:
        """``(B, m, D)`` behind some block -> ``(B, L, D)``: merged tokens have the state of theirs, those that left the one in
        which they did, and padding zeros. States of other lengths are returned as they are."""
        shape, layout = self.by_length.get(hidden.shape[1]), self.layout
        if shape is None or layout is None or hidden.shape[1] == layout.length:
            return hidden
        out = take(hidden.contiguous(), shape.owner.clamp(min=0))
        if shape.total.matrix is not None:
            out = self._mixed(out, hidden, shape)
        gone = shape.owner < 0
        if bool(gone.any()):
            out = out.masked_fill(gone[..., None], 0.0)
            for place, states in self.parcels[: shape.left]:
                row = torch.arange(len(out), device=out.device)[:, None].expand_as(place)
                at = place >= 0
                out = out.index_put((row[at], place[at]), states[at].to(out.dtype))
        return out

    def _mixed(self, out: Tensor, hidden: Tensor, shape: Remaining) -> Tensor:
        """Of tokens that went to several slots, the mean of these."""
        layout, total = self.layout, shape.total
        assert layout is not None
        mixed = total.restore(take(hidden.contiguous(), shape.slots))
        if layout.place is None:
            return torch.cat([out[:, : layout.front], mixed, out[:, layout.length - layout.back :]], 1)
        assert layout.valid is not None
        row = torch.arange(len(out), device=out.device)[:, None].expand_as(layout.place)
        return out.index_put((row[layout.valid], layout.place[layout.valid]), mixed[layout.valid])


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
    """

    inner: Reduction
    layout: Layout
    kept: Tensor
    owner: Tensor
    slots: Tensor
    real: Tensor | None

    @classmethod
    def of(cls, inner: Reduction, layout: Layout) -> Step:
        """From a reduction of the tokens at ``layout.place``."""
        front, back, m = layout.front, layout.back, inner.m
        device, batch = inner.kept.device, inner.batch
        if layout.place is None:
            tail = torch.arange(layout.length - back, layout.length, device=device)
            ends = [torch.arange(front, device=device).expand(batch, -1), tail.expand(batch, -1)]
            kept = torch.cat([ends[0], inner.kept + front, ends[1]], 1)
            owner = torch.where(inner.owner >= 0, inner.owner + front, -1)
            owner = torch.cat([ends[0], owner, ends[1] - layout.length + front + m + back], 1)
            mask = inner.mask
            real = None if bool(mask.all()) else torch.nn.functional.pad(mask, (front, back), value=True)
            slots = torch.arange(front, front + m, device=device).expand(batch, -1)
            return cls(inner, layout, kept, owner, slots, real)
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
    def keeps(self) -> bool:
        """Whether every token is kept or merged into one that is, so that none has left."""
        return not self.inner.drops and bool((self.owner >= 0).all())

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
        gone = self.owner < 0
        return out.masked_fill(gone[..., None], 0.0) if bool(gone.any()) else out

    def next(self) -> Layout:
        """The layout of the next sequence."""
        layout = self.layout
        if layout.place is None and self.real is None:
            return Layout(self.length, layout.front, layout.back)
        return Layout(self.length, 0, 0, self.slots, self.inner.mask, self.real)
