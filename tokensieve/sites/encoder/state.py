"""State: what became of the tokens of one pass of an encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from tokensieve.core.reduction import Reduction
from tokensieve.core.stage import Stage
from tokensieve.parts.select import compact, take
from tokensieve.sites.encoder.packed import Packing
from tokensieve.sites.encoder.roles import Layout
from tokensieve.sites.encoder.step import Step
from tokensieve.sites.model.trace import StageTrace, Trace


@dataclass(frozen=True)
class Remaining:
    """The tokens that are there behind some block.

    Attributes:
        steps: how many steps led to them.
        owner: ``(B, L)`` long, where each token of the whole sequence is now, itself or the one it was merged into; -1 where it
            left.
        place: ``(B, m)`` long, where in the whole sequence each one stands, -1 at padding.
        slots: ``(B, M)`` long, where among those that are there each of them stands that may leave.
        left: how many parcels of :attr:`EncoderReduction.parcels` had left.
    """

    steps: int
    owner: Tensor
    place: Tensor
    slots: Tensor
    left: int


class EncoderReduction:
    """What became of the tokens of one pass of an encoder.

    Attributes:
        grid: rows and columns of the patches of each image; None where that is not known.
        layout: of the whole sequence; current: of the one that is there.
        steps: what became of the tokens that may leave, one after the other; blocks: in which, -1 in front of the first.
        weights: ``(B, M)``, how many stand for each of those that are left; None where each stands for itself.
        targets: how many are to be left behind each of the site's blocks, a tensor ``(B,)`` each.
        by_length: what was there when the states held so many tokens, special ones included.
        score: what the method ranked by at first; None where nobody asked.
        parcels: tokens that left, in the state in which they did: the block, -1 in front of the first, places ``(B, d)``, -1 at
            padding, and states ``(B, d, D)``.
        shape: what is there now; None while all tokens are.
        bias: ``(B, m)``, what is added to attention to each token; None where nothing is.
        index: by a number of tokens, which of those each one is that is there.
        step: what leaves in the block that is running; entered: the states that it was called with; packing: how it holds them.
        calls: blocks that have run; tokens: in front of each.
        chained: whether blocks hand on more than states, so that some of it is of the tokens of an earlier block.
        restored: whether the states have their full length again.
    """

    def __init__(self, grid: tuple[int, int] | None, layout: Layout):
        self.grid, self.layout, self.current = grid, layout, layout
        self.steps: list[Reduction] = []
        self.blocks: list[int] = []
        self.weights: Tensor | None = None
        self._totals: list[Reduction] = []
        self.targets: list[Tensor] = []
        self.by_length: dict[int, Remaining] = {}
        self.score: Tensor | None = None
        self.parcels: list[tuple[int, Tensor, Tensor]] = []
        self.shape: Remaining | None = None
        self.bias: Tensor | None = None
        self.index: dict[int, Tensor] = {}
        self.step: Step | None = None
        self.entered: Tensor | None = None
        self.packing = Packing()
        self._trace: Trace | None = None
        self.calls, self.tokens = 0, list[int]()
        self.chained = self.restored = False

    def begin(self, batch: int, device: torch.device) -> None:
        """A stage stands in front of its first block."""
        self._totals = [Reduction.identity(batch, self.layout.count, device)]

    @property
    def batch(self) -> int:
        """Rows of the pass; 1 in front of the first stage."""
        return self._totals[0].batch if self._totals else 1

    @property
    def total(self) -> Reduction | None:
        """From the tokens that may leave to those that are left so far; None in front of the first stage."""
        return self.composed(len(self.steps)) if self._totals else None

    def composed(self, steps: int) -> Reduction:
        """From the tokens that may leave to those that so many steps have left: composed when somebody asks."""
        while len(self._totals) <= steps:
            self._totals.append(self._totals[-1].then(self.steps[len(self._totals) - 1]))
        return self._totals[steps]

    def at(self, index: int) -> int:
        """The block that is running: ``index``, or more where one module is called again and again."""
        return max(index, self.calls)

    def over(self) -> None:
        """The pass is over: the states of what left are let go."""
        self.parcels = [(block, place, states.new_empty(0)) for block, place, states in self.parcels]

    def trace(self, stage: Stage) -> Trace:
        """What came of a pass that is over."""
        if self._trace is None:
            assert self.total is not None
            stages, rows = [StageTrace(stage, self.total, self.score, self.grid)], list(range(self.batch))
            steps = [(block, self.composed(i + 1)) for i, block in enumerate(self.blocks)]
            self._trace = Trace(
                stages, rows, [float(n) for n in self.tokens], self.layout.places(self.batch), stays=self.stays(),
                left=self.left(), packed=self.packing.blocks, steps=steps,
            )  # fmt: skip
        return self._trace

    def follow(self, step: Step, hidden: Tensor, proportional: bool, block: int) -> None:
        """Tokens leave.

        Args:
            hidden: ``(B, L, D)``, in the state in which they do; proportional: whether attention weighs the others by size;
                block: in which they leave.
        """
        length = hidden.shape[1]
        before, intact = self.shape, self.layout.place is None and not self.parcels
        self.steps.append(step.inner)
        self.blocks.append(block)
        self.weights = self._weights(step.inner)
        if step.inner.loses:
            gone = step.owner < 0 if step.layout.real is None else (step.owner < 0) & step.layout.real
            if bool(gone.any()):
                at, there = compact(gone)
                left = at if before is None else before.place.gather(1, at)
                self.parcels.append((block, left.masked_fill(~there, -1), take(hidden.contiguous(), at)))
        owner, place = step.owner, step.kept
        if before is not None:
            place = before.place.gather(1, step.kept)
            owner = step.owner.gather(1, before.owner if intact else before.owner.clamp(min=0))
            owner = owner if intact else torch.where(before.owner >= 0, owner, -1)
        place = place if step.real is None else place.masked_fill(~step.real, -1)
        earlier = self.index if self.chained else {}
        self.index = {n: i.gather(1, step.kept) for n, i in earlier.items() if n != self.layout.count}
        self.index |= {length: step.kept, self.layout.length: place}
        if self.layout.place is None and (step.real is None or not self.layout.back):
            front = self.layout.front
            self.index.setdefault(self.layout.count, place[:, front : place.shape[1] - self.layout.back] - front)
        self.shape = Remaining(len(self.steps), owner, place, step.slots, len(self.parcels))
        self.by_length[step.length] = self.shape
        self.current = step.next()
        self.bias = self.sizes().to(hidden.dtype) if proportional else None
        if step.real is not None and self.bias is None:
            zeros = torch.zeros(step.real.shape, dtype=hidden.dtype, device=hidden.device)
            self.bias = zeros.masked_fill(~step.real, torch.finfo(hidden.dtype).min)

    def _weights(self, inner: Reduction) -> Tensor | None:
        if inner.drops:
            return None if self.weights is None else self.weights.gather(1, inner.kept)
        if any(step.matrix is not None for step in self.steps):
            return self.composed(len(self.steps)).sizes()
        if self.weights is None:
            return inner.sizes()
        held = self.weights.masked_fill(inner.owner < 0, 0.0) if inner.loses else self.weights
        out = held.new_zeros(inner.kept.shape).scatter_add_(1, inner.owner.clamp(min=0), held)
        return out if inner.even else out.clamp(min=1.0)

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
        out = torch.zeros(self.batch, self.layout.length, dtype=torch.bool)
        if self.shape is None:
            return ~out if self.layout.real is None else self.layout.real.cpu()
        place = self.shape.place.cpu()
        row = torch.arange(self.batch)[:, None].expand_as(place)
        out[row[place >= 0], place[place >= 0]] = True
        return out

    def left(self) -> Tensor:
        """``(B, L)`` long: the block in which each token of the whole sequence left, -1 in front of the first, and the number of
        blocks where it did not leave."""
        out = torch.full((self.batch, self.layout.length), self.calls)
        for block, place, _ in self.parcels:
            row, where = torch.arange(self.batch)[:, None].expand(place.shape), place.cpu()
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
        place, last = self.shape.place, self.steps[-1]
        sizes = torch.ones(last.kept.shape, device=place.device) if self.weights is None else self.weights
        if self.current.place is None:
            return pad(sizes.log(), (self.current.front, self.current.back))
        out = torch.zeros(place.shape, device=place.device)
        # Padding slots repeat the place of a row's last one.
        out.scatter_reduce_(1, self.shape.slots, sizes.log().masked_fill(~last.mask, 0.0), "amax")
        return out.masked_fill(place < 0, torch.finfo(out.dtype).min)

    def widen(self, x: Tensor, first: int) -> Tensor:
        """``(I, m, ...)`` recorded at some block -> ``(I, n, ...)``: each original token has what its slot had there.

        Args:
            first: special tokens around the patches, which ``x`` does not hold.
        """
        if not self.steps or x.shape[1] == self.steps[0].n:
            return x
        flat = x.reshape(*x.shape[:2], -1)
        return (
            self.composed(self.by_length[first + x.shape[1]].steps).restore(flat).reshape(x.shape[0], -1, *x.shape[2:])
        )

    def restore(self, hidden: Tensor) -> Tensor:
        """``(B, m, D)`` behind some block -> ``(B, L, D)``: merged tokens have the state of theirs, those that left the one in
        which they did, and padding zeros. States of other lengths are returned as they are."""
        shape, layout = self.by_length.get(hidden.shape[1]), self.layout
        if shape is None or layout is None or hidden.shape[1] == layout.length:
            return hidden
        out = take(hidden.contiguous(), shape.owner.clamp(min=0))
        if any(step.matrix is not None or step.expansion is not None for step in self.steps[: shape.steps]):
            out = self._mixed(out, hidden, shape)
        if self.layout.place is None and not shape.left:
            return out
        gone = shape.owner < 0
        if bool(gone.any()):
            out = out.masked_fill(gone[..., None], 0.0)
            for _, place, states in self.parcels[: shape.left]:
                row = torch.arange(len(out), device=out.device)[:, None].expand_as(place)
                at = place >= 0
                out.index_put_((row[at], place[at]), states[at].to(out.dtype))
        return out

    def _mixed(self, out: Tensor, hidden: Tensor, shape: Remaining) -> Tensor:
        """Of tokens that went to several slots, the mean of these."""
        layout, total = self.layout, self.composed(shape.steps)
        assert layout is not None
        mixed = total.restore(take(hidden.contiguous(), shape.slots))
        if layout.place is None:
            return torch.cat([out[:, : layout.front], mixed, out[:, layout.length - layout.back :]], 1)
        assert layout.valid is not None
        row = torch.arange(len(out), device=out.device)[:, None].expand_as(layout.place)
        return out.index_put((row[layout.valid], layout.place[layout.valid]), mixed[layout.valid])
