"""Pictures: what stands in a prompt, in order, and which of its placeholders is which of their tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokensieve.sites.visual.layout import EncoderPass

Pictures = list[tuple[EncoderPass, int]]
"""Each picture as an encoder's pass, and its number among those that it made."""


def runs_of(visual: Tensor, sequence: Tensor | None) -> Tensor:
    """``(B, L)`` long: the number of the run of neighbours, of one sequence, that each visual token belongs to."""
    before = torch.nn.functional.pad(visual[:, :-1], (1, 0))
    if sequence is not None:
        before = before & torch.nn.functional.pad(sequence[:, 1:] == sequence[:, :-1], (1, 0))
    return (visual & ~before).flatten().long().cumsum(0).view(visual.shape)


def are_tiles(run: Tensor, tile: int | None) -> bool:
    """Whether every run holds the tokens of one of the encoder's images."""
    return tile is not None and bool((run.unique_consecutive(return_counts=True)[1] == tile).all())


def order(here: Tensor, pictures: Pictures, looks: list[EncoderPass]) -> tuple[Tensor, Tensor] | None:
    """For the V placeholders of a kind, ``here`` being ``(B, L)`` bool, which picture each belongs to, and its rank among the
    tokens of all looks so far; both ``(V,)`` long. None where they do not fit.

    Args:
        looks: is added those that are new.
    """
    if not pictures:
        return None
    lengths = [look.lengths[i] for look, i in pictures]
    if sum(lengths) != int(here.sum()):
        return None
    for look, _ in pictures:
        if not any(look is one for one in looks):
            looks.append(look)
    before = [sum(look.tokens for look in looks[:i]) for i in range(len(looks))]
    first = {id(look): start for look, start in zip(looks, before, strict=True)}
    starts = [first[id(look)] + sum(look.lengths[:i]) for look, i in pictures]
    parts = [torch.arange(start, start + n, device=here.device) for start, n in _joined(starts, lengths)]
    at = parts[0] if len(parts) == 1 else torch.cat(parts)
    if len(pictures) == 1:
        return torch.zeros_like(at), at
    count = torch.tensor(lengths, device=here.device)
    return torch.arange(len(count), device=here.device).repeat_interleave(count, output_size=len(at)), at


def _joined(starts: Sequence[int], lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Runs (start, length), those that follow on each other as one."""
    out: list[tuple[int, int]] = []
    for start, length in zip(starts, lengths, strict=True):
        if out and sum(out[-1]) == start:
            out[-1] = (out[-1][0], out[-1][1] + length)
        else:
            out.append((start, length))
    return out
