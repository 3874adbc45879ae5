"""The stream: which tokens of a prompt are still there, during one pass through the language model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokensieve.core.reduction import Reduction
from tokensieve.sites.model.masks import gather
from tokensieve.sites.visual.images import Images


class Stream:
    """The tokens of one pass.

    Attributes:
        length: tokens of the prompt, L.
        index: ``(B, l)`` long, the prompt position of each token in the stream; -1 at padding (always on the left).
        entry: ``(B, l)`` long, its position among the tokens that entered the language model; -1 at padding.
        images: the visual tokens; reduction: what became of them so far, per image.
        left: ``(B, L, D)``, the last state of every token that is gone.
        stayed: ``(B, l)`` long, of the tokens behind the last step the stream positions they had in front of it; -1 at padding.
        past: the index as it was at every length l of this pass.
        holes: whether the index holds padding.
        width: tokens that entered the language model; thinned: whether some of these have left since.
        ids: ``(..., B, width)``, their position ids; None until they are known.
        shift: ``(..., B)``, by how much the ids of later tokens are lowered; None where positions are the original ones;
            entered_shift: what it was when tokens entered the language model.
        held: ``(I,)`` visual tokens of each image in front of every layer so far.
        ranking: ``(I, n)``, what a stage in front of the language model last ranked the tokens by; None where none did.
        renumbered: position ids and rotary tables that layers after a compacting prefill stage get instead of theirs.
        sequence: ``(B, L)`` long, which of the prompts packed into its row each token belongs to; None where rows hold one.
        asked: how many of the L tokens are the prompt's own; behind them stand drafts, or the answer so far.
    """

    def __init__(self, images: Images, real: Tensor, sequence: Tensor | None = None, asked: int | None = None):
        """``real`` is ``(B, L)`` bool, False at the prompt's own padding."""
        b, self.length = real.shape
        self.index = torch.arange(self.length, device=real.device).expand(b, -1)
        self.entry = self.index
        self.width, self.thinned = self.length, False
        self.ids: Tensor | None = None
        self.images, self.real, self.sequence = images, real, sequence
        self.asked = self.length if asked is None else asked
        self.reduction = Reduction.keep(images.mask)
        self.left: Tensor | None = None
        self.stayed = self.index
        self.past: dict[int, Tensor] = {}
        self.holes = False
        self.shift: Tensor | None = None
        self.entered_shift: Tensor | None = None
        self.layer_counts: list[Tensor] = []
        self.ranking: Tensor | None = None
        self.renumbered: tuple[Tensor, Any] | None = None
        self._start = (self.index, self.holes, self.reduction)

    @property
    def reduced(self) -> bool:
        return self.left is not None

    def slots(self) -> tuple[Tensor, Tensor]:
        """Stream positions ``(I, m)`` of the visual tokens that are there, and ``(I, m)`` bool which of them are real."""
        place = self.images.place.gather(1, self.reduction.kept)
        mask = self.reduction.mask & (place >= 0)
        inverse = torch.zeros(self.index.shape[0], self.length, dtype=torch.long, device=place.device)
        here = torch.arange(self.index.shape[1], device=place.device).expand_as(self.index)
        inverse.scatter_(1, self.index.clamp(min=0), torch.where(self.index >= 0, here, 0))
        return inverse[self.images.row].gather(1, place.clamp(min=0)), mask

    def text(self, late: bool = False) -> tuple[Tensor, Tensor]:
        """Stream positions ``(B, T)`` of the text tokens after the first visual one of their prompt (all of its text, where none
        follows), and mask.

        Args:
            late: count what stands behind the prompt in too.
        """
        place, mask = self.slots()
        visual = torch.zeros(self.index.shape, dtype=torch.bool, device=place.device)
        row = self.images.row[:, None].expand_as(place)
        visual[row[mask], place[mask]] = True
        text = self.real_here() & ~visual
        if self.asked < self.length and not late:
            text &= self.index < self.asked
        if self.sequence is None:
            after = text & (visual.long().cumsum(1) > 0)
            text = torch.where(after.any(1, keepdim=True), after, text)
        else:
            own = self.sequence_here()
            each = (own[:, None] == torch.arange(int(own.max()) + 1, device=own.device)[:, None]) & (self.index >= 0)[
                :, None
            ]
            after = text[:, None] & each & ((visual[:, None] & each).long().cumsum(2) > 0)
            text = torch.where(after.any(2, keepdim=True), after, text[:, None] & each).any(1)
        most = max(int(text.sum(1).max()), 1)
        order = text.to(torch.uint8).argsort(dim=1, stable=True)[:, -most:]
        return order, text.gather(1, order)

    def mine(self, text: Tensor, mask: Tensor) -> Tensor:
        """``(I, T)`` bool: which of the text tokens at ``text``, ``(B, T)``, stand in the prompt of each image."""
        row = self.images.row
        if self.sequence is None:
            return mask[row]
        return mask[row] & (self.sequence_here().gather(1, text)[row] == self.numbers()[:, None])

    def numbers(self) -> Tensor:
        """``(I,)`` long: which prompt of its row each image belongs to."""
        if self.sequence is None:
            return torch.zeros_like(self.images.row)
        return self.sequence[self.images.row, self.images.place[:, 0]]

    def sequence_here(self) -> Tensor:
        """``(B, l)`` long: which prompt of its row each token in the stream belongs to; 0 at padding."""
        if self.sequence is None:
            return torch.zeros_like(self.index)
        return self.sequence.gather(1, self.index.clamp(min=0))

    def text_lengths(self) -> Tensor:
        """``(I,)`` long: how many text tokens each image's prompt holds."""
        visual = torch.zeros_like(self.real)
        place = self.images.place
        row = self.images.row[:, None].expand_as(place)
        visual[row[place >= 0], place[place >= 0]] = True
        text = self.real & ~visual
        text[:, self.asked :] = False
        text = text[self.images.row]
        if self.sequence is not None:
            text = text & (self.sequence[self.images.row] == self.numbers()[:, None])
        return text.sum(1)

    def real_here(self) -> Tensor:
        """``(B, l)`` bool: tokens in the stream that are no padding."""
        return self.real.gather(1, self.index.clamp(min=0)) & (self.index >= 0)

    def pick(self, x: Tensor, place: Tensor) -> Tensor:
        """Tokens of ``x`` (``(B, l, D)``) at each image's stream positions: ``(I, m, D)``."""
        return x[self.images.row[:, None], place]

    def rank(self, score: Tensor) -> None:
        """Remember what the tokens that are there, ``(I, m)``, were ranked by."""
        image, slot = self.reduction.mask.nonzero(as_tuple=True)
        self.ranking = score.new_zeros(self.images.place.shape)
        self.ranking[image, self.reduction.kept[image, slot]] = score[image, slot]

    def leave(self, step: Reduction, x: Tensor, merge: bool = True) -> Tensor:
        """Apply a step of reduction to the visual tokens of the stream; where all stay, nothing is touched.

        Args:
            step: per image, from the slots that are there to fewer.
            x: ``(B, l, D)`` states or embeddings.
            merge: write the merged tokens; False where ``x`` holds them already.

        Returns:
            the new states ``(B, l', D)``.
        """
        place, mask = self.slots()
        if merge and step.drops and int(step.counts.sum()) == int(mask.sum()):
            return x
        row = self.images.row[:, None]
        new = step.take(place)
        kept = step.mask & step.take(mask)
        self.left = self._scatter(x, torch.zeros_like(x) if self.left is None else self.left, self.index)
        if merge and not step.drops:
            values = step.apply(self.pick(x, place))
            x = x.clone()
            x[row.expand_as(new)[kept], new[kept]] = values[kept].to(x.dtype)
        survive = self.real_here()
        survive[row.expand_as(place)[mask], place[mask]] = False
        survive[row.expand_as(new)[kept], new[kept]] = True
        chosen = self.stayed = _survivors(survive)
        self.index = torch.where(chosen >= 0, self.index.gather(1, chosen.clamp(min=0)), -1)
        self.entry = torch.where(chosen >= 0, self.entry.gather(1, chosen.clamp(min=0)), -1)
        self.past[self.index.shape[1]] = self.index
        self.holes, self.thinned = bool((self.index < 0).any()), True
        self.reduction = self.reduction.then(step)
        return gather(x, chosen, 1)

    def entered(self) -> None:
        """The tokens now in the stream are those that the language model is given."""
        self.width, self.thinned, self.entered_shift = self.index.shape[1], False, self.shift
        self.entry = torch.arange(self.width, device=self.index.device).expand_as(self.index)
        self._start = (self.index, self.holes, self.reduction)

    def recall(self, x: Tensor) -> Tensor:
        """Tokens that left inside the language model come back, each in the state in which it left: ``(B, width, D)``."""
        if not self.thinned:
            return x
        x = self.whole(x)
        self.index, self.holes, self.reduction = self._start
        self.entered()
        return gather(x, self.index, 1)

    def whole(self, x: Tensor) -> Tensor:
        """``(B, l, D)`` at the end of the pass -> ``(B, L, D)``: tokens that are gone get the state in which they left."""
        return x if self.left is None else self._scatter(x, self.left, self.index)

    def restore(self, x: Tensor) -> Tensor:
        """As :meth:`whole`, for states of any layer, told apart by how many tokens they hold."""
        known = x.shape[1] != self.length and x.shape[1] in self.past
        return x if self.left is None or not known else self._scatter(x, self.left, self.past[x.shape[1]])

    def _scatter(self, x: Tensor, into: Tensor, index: Tensor) -> Tensor:
        if into.shape[1] != self.length:
            into = into.new_zeros(into.shape[0], self.length, into.shape[2])
        real = index >= 0
        row = torch.arange(x.shape[0], device=x.device)[:, None].expand_as(index)
        out = into.clone()
        out[row[real], index[real]] = x[real].to(out.dtype)
        return out


def _survivors(survive: Tensor) -> Tensor:
    """Positions of the True entries of each row, ascending, padded with -1 on the left."""
    counts = survive.sum(1)
    most = int(counts.max())
    if bool((counts == most).all()):
        return survive.nonzero()[:, 1].view(survive.shape[0], most)
    order = survive.to(torch.uint8).argsort(dim=1, stable=True)[:, -most:]
    return torch.where(survive.gather(1, order), order, -1)
