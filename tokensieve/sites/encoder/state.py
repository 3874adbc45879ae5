"""State: what became of the tokens of one pass of an encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokensieve.core.reduction import Reduction
from tokensieve.parts.select import compact, take
from tokensieve.sites.encoder.roles import Layout
from tokensieve.sites.encoder.step import Step


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
        exits: of each parcel the block in which it left, -1 in front of the first.
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
        self.exits: list[int] = []
        self.shape: Remaining | None = None
        self.bias: Tensor | None = None
        self.index: dict[int, Tensor] = {}
        self.step: Step | None = None
        self.calls, self.tokens = 0, list[int]()
        self.chained = self.restored = False

    def at(self, index: int) -> int:
        """The block that is running: ``index``, or more where one module is called again and again."""
        return max(index, self.calls)

    def follow(self, step: Step, hidden: Tensor, proportional: bool, block: int) -> None:
        """Tokens leave.

        Args:
            hidden: ``(B, L, D)``, in the state in which they do; proportional: whether attention weighs the others by size;
                block: in which they leave.
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
                self.exits.append(block)
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

    def bring_back(self, hidden: Tensor, output: Any) -> Tensor:
        """All tokens stand in their places again, in the states that :meth:`restore` gives them.

        Args:
            output: of the block in front; one that hands on more than states made it of the tokens that were left.
        """
        if self.chained and any(isinstance(more, Tensor) for more in output[1:]):
            raise ValueError(f"back={self.calls}: the blocks of this encoder hand on more than states; leave it out")
        whole = self.restore(hidden)
        self.shape, self.bias, self.index, self.current = None, None, {}, self.layout
        return whole

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

    def left(self) -> Tensor:
        """``(B, L)`` long: the block in which each token of the whole sequence left, -1 in front of the first, and the number of
        blocks where it did not leave."""
        batch = 1 if self.total is None else self.total.batch
        out = torch.full((batch, self.layout.length), self.calls)
        for block, (place, _) in zip(self.exits, self.parcels, strict=True):
            row, where = torch.arange(batch)[:, None].expand(place.shape), place.cpu()
            out[row[where >= 0], where[where >= 0]] = block
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
        if shape.total.matrix is not None or shape.total.expansion is not None:
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
