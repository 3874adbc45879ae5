"""Ending: in a prompt that ends in an image, the last token stays, since the answer begins there."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from tokensieve.core.method import Method
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.sites.visual.token_stream import Stream


def ends(stream: Stream) -> Tensor:
    """``(I, m)`` bool: of the tokens of each image that are there, the one that ends its prompt; never two in a row."""
    steps = torch.arange(stream.length, device=stream.real.device)
    last = torch.where(stream.real, steps, -1).amax(1)[stream.images.row]
    place = stream.images.place.gather(1, stream.reduction.kept)
    return (place == last[:, None]) & stream.reduction.mask


def staying(method: Method, signals: Signals, counts: Tensor, last: Tensor) -> Reduction:
    """What a method leaves where the tokens at ``last``, ``(B, N)`` bool, one in a row at most, stay as they are and count in the
    budget, ``(B,)``: it chooses among the others of these rows."""
    counts = counts - last.any(1).long()
    # A method keeps at least one; what it kept of a row whose whole budget is the last token is let go behind it.
    rest = replace(signals, mask=signals.valid & ~last)
    return _beside(method.reduce(rest, counts.clamp(min=1)), last, counts == 0)


def _beside(step: Reduction, last: Tensor, alone: Tensor) -> Reduction:
    """A reduction with one more slot behind the others for the token at ``last``, in the rows that have one.

    Args:
        alone: ``(B,)`` bool, rows of which nothing else stays.
    """
    ends, at = last.any(1), last.long().argmax(1)
    mask = pad(step.mask & ~alone[:, None], (0, 1))
    slot = mask.sum(1)
    width = int((slot + ends).max())
    behind = torch.arange(mask.shape[1], device=slot.device) >= slot[:, None]
    kept = torch.cat([step.kept, step.kept[:, -1:]], 1)
    kept = torch.where(behind & ends[:, None], at[:, None], kept)
    mask = mask | ((behind.long().cumsum(1) == 1) & ends[:, None])
    owner = step.owner.masked_fill(alone[:, None], -1)
    owner = torch.where(last, slot[:, None], owner)
    weight = None if step.weight is None else step.weight.masked_fill(alone[:, None], 0.0).masked_fill(last, 1.0)
    if step.matrix is None:
        return Reduction(step.n, kept[:, :width], mask[:, :width], owner, weight, None)
    matrix = pad(step.dense().masked_fill(alone[:, None, None], 0.0), (0, 0, 0, 1)).clone()
    row = torch.arange(len(slot), device=slot.device)[ends]
    matrix[row, slot[ends], at[ends]] = 1.0
    return Reduction(step.n, kept[:, :width], mask[:, :width], owner, None, matrix[:, :width])
