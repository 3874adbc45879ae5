"""Renumbering: position ids of the visual and text tokens that are left in a stream, and their rotary tables."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tokensieve.parts.numeric import position_ids
from tokensieve.sites.model.masks import gather_ids
from tokensieve.sites.model.position_ids import rotary
from tokensieve.sites.visual.token_stream import Stream


def placed(stream: Stream, ids: Tensor, index: Tensor, policy: str) -> Tensor:
    """Position ids ``(..., B, l)`` of the survivors at ``index``; the stream remembers by how much later ids are lowered."""
    full = ids.expand(*ids.shape[:-2], index.shape[0], ids.shape[-1])
    sequence = None
    if stream.sequence is not None:
        sequence = stream.sequence_here()
    new = position_ids.positions(full, index.clamp(min=0), index >= 0, policy, sequence)
    if policy == "compact":
        lowered = position_ids.shift(full, index.clamp(min=0), index >= 0, policy)
        stream.shift = lowered if stream.shift is None else stream.shift + lowered
    return new


def renumbered(language: nn.Module, stream: Stream, hidden: Tensor) -> tuple[Tensor, Any]:
    """Consecutive ids of the survivors inside the language model, and their rotary tables."""
    assert stream.ids is not None
    stream.shift = stream.entered_shift  # ids count from those that entered
    new = placed(stream, stream.ids, stream.entry, "compact")
    return new, rotary(language, hidden, new)


def fewer(language: nn.Module, stream: Stream, hidden: Tensor) -> tuple[Tensor, Any]:
    """The renumbered ids of those that a later stage left, as they are, and their rotary tables."""
    assert stream.renumbered is not None
    ids = gather_ids(stream.renumbered[0], stream.stayed)
    return ids, rotary(language, hidden, ids)
