"""Temporal: frames of a video, what they have in common and where they change.

``frame`` is ``(B, N)`` long, 0, 1, ... without gaps, -1 at padding. A token's place is its rank within its frame; tokens
of one place in several frames see the same spot.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tokensieve.core.signals import Signals
from tokensieve.parts.numeric import twins
from tokensieve.parts.select import group_sizes, take, top
from tokensieve.parts.select.distance import density_peaks

BLOCK = 1024


def frames(s: Signals) -> Tensor:
    """``(B, N)``: the frame of each token, numbered without gaps; all are one where no frames are given.

    Tokens of no frame (line ends) form one more, behind the last.
    """
    if s.frame is None:
        return s.valid.long() - 1
    last = torch.iinfo(torch.long).max
    return dense(torch.where(s.frame >= 0, s.frame, last - 1), s.valid)


def dense(key: Tensor, candidates: Tensor) -> Tensor:
    """``(B, N)``: the candidates' keys in their order as 0, 1, ... without gaps; -1 elsewhere."""
    sorted_, order = key.masked_fill(~candidates, torch.iinfo(key.dtype).max).sort(dim=1, stable=True)
    new = torch.zeros_like(key)
    new[:, 1:] = (sorted_[:, 1:] != sorted_[:, :-1]).long()
    return torch.where(candidates, torch.zeros_like(key).scatter_(1, order, new.cumsum(1)), -1)


def number(frame: Tensor) -> int:
    """How many frames the longest row has."""
    return int(frame.max()) + 1


def places(frame: Tensor) -> Tensor:
    """``(B, N)``: the rank of each token within its frame; -1 at padding."""
    count = number(frame)
    group = torch.where(frame < 0, count, frame)
    order = group.argsort(dim=1, stable=True)
    size = group_sizes(group, torch.ones_like(frame, dtype=torch.bool), count + 1)
    first = (size.cumsum(1) - size).gather(1, group)
    step = torch.arange(frame.shape[1], device=frame.device).expand_as(frame)
    return torch.where(frame < 0, -1, torch.zeros_like(frame).scatter_(1, order, step) - first)


def table(frame: Tensor) -> tuple[Tensor, Tensor]:
    """Frames as rows of their own: the tokens of each, ``(B, F, P)`` positions in order, and which of them are filled."""
    place, count = places(frame), number(frame)
    width = int(place.max()) + 1
    cell = torch.where(frame < 0, count * width, frame * width + place)
    step = torch.arange(frame.shape[1], device=frame.device).expand_as(frame)
    out = frame.new_full((len(frame), count * width + 1), -1).scatter_(1, cell, step)
    out = out[:, :-1].unflatten(1, (count, width))
    return out.clamp(min=0), out >= 0


def rows(x: Tensor, place: Tensor) -> Tensor:
    """``(B * F, P, D)``: tokens of x laid out as ``place`` (``(B, F, P)``) says."""
    return take(x, place.flatten(1)).view(-1, place.shape[2], x.shape[2])


def back(value: Tensor, place: Tensor, valid: Tensor, n: int, fill: int | float | bool) -> Tensor:
    """``(B, N)`` from a table's values ``(B, F, P)``; ``fill`` where no cell is filled."""
    out = value.new_full((len(place), n + 1), fill)
    cell = torch.where(valid, place, n).flatten(1)
    return out.scatter_(1, cell, value.flatten(1))[:, :n]


def before(frame: Tensor) -> Tensor:
    """``(B, N)``: the token at the same place of the nearest earlier frame that has this place; -1 where none has."""
    place, count = places(frame), number(frame)
    key = torch.where(frame < 0, torch.iinfo(frame.dtype).max, place * count + frame)
    order = key.argsort(dim=1, stable=True)
    sorted_ = torch.where(frame < 0, -1, place).gather(1, order)
    link = torch.full_like(frame, -1)
    link[:, 1:] = torch.where((sorted_[:, 1:] == sorted_[:, :-1]) & (sorted_[:, 1:] >= 0), order[:, :-1], -1)
    return torch.zeros_like(frame).scatter_(1, order, link)


def chain(link: Tensor, joins: Tensor) -> Tensor:
    """``(B, N)``: where each token ends up if those that join follow their links, and so on; itself where it stays."""
    step = torch.arange(link.shape[1], device=link.device).expand_as(link)
    target = torch.where(joins, link, step)
    while not torch.equal(further := target.gather(1, target), target):
        target = further
    return target


def linked_cosine(x: Tensor, link: Tensor) -> Tensor:
    """``(B, N)``: the cosine of each token with the one it is linked to; minus infinity without a link. In blocks."""
    norm = torch.linalg.vector_norm(x, dim=2).clamp(min=1e-12)
    dot = torch.cat([(a * b).sum(2) for a, b in _linked(x, link)], 1)
    near = dot / (norm * norm.gather(1, link.clamp(min=0)))
    return near.masked_fill(link < 0, -torch.inf)


def change(x: Tensor, link: Tensor) -> Tensor:
    """``(B, N)``: the Euclidean distance of each token to the one it is linked to; 0 without a link. In blocks."""
    far = torch.cat([torch.linalg.vector_norm(a - b, dim=2) for a, b in _linked(x, link)], 1)
    return far.masked_fill(link < 0, 0.0)


def _linked(x: Tensor, link: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for own, other in zip(x.split(BLOCK, 1), link.clamp(min=0).split(BLOCK, 1), strict=True):
        yield own, rows(x, other[:, None])


def per_frame(value: Tensor, frame: Tensor, candidates: Tensor) -> Tensor:
    """``(B, F)``: the mean of a value ``(B, N)`` over the candidates of each frame; 0 where it has none."""
    total = value.new_zeros(len(frame), number(frame))
    inside = candidates & (frame >= 0)
    total.scatter_add_(1, frame.clamp(min=0), torch.where(inside, value, 0.0))
    return total / group_sizes(frame, inside, total.shape[1]).clamp(min=1)


def means(x: Tensor, frame: Tensor) -> Tensor:
    """``(B, F, D)``: the mean token of each frame; zero where a row has fewer frames."""
    count = number(frame)
    flat = torch.where(frame < 0, count, frame) + torch.arange(len(x), device=x.device)[:, None] * (count + 1)
    total = x.new_zeros(len(x) * (count + 1), x.shape[2]).index_add_(0, flat.flatten(), x.flatten(0, 1))
    size = group_sizes(frame, frame >= 0, count).clamp(min=1)
    return total.unflatten(0, (len(x), count + 1))[:, :count] / size[..., None]


def grid(s: Signals, filled: Tensor) -> tuple[Tensor, int] | None:
    """Rows ``(B * F, 1)`` and columns of each frame of a table, where a grid of all frames one above the other tells them.

    Rows are 0 for frames that do not fill them, and where tokens are padding.
    """
    if s.grid is None:
        return None
    size = filled.sum(2)
    whole = s.valid.all(1, keepdim=True) & (size % s.grid[1] == 0)
    return torch.where(whole, size // s.grid[1], 0).view(-1, 1), s.grid[1]


def contrast(x: Tensor, valid: Tensor, grid: tuple[Tensor, int] | None) -> Tensor:
    """``(G, P)``: how much each token differs from those beside it, and above and below where the grid is known.

    The mean Euclidean distance over its neighbours; frames without rows are read as one line.

    Args:
        x: ``(G, P, D)``, one frame per row; valid: ``(G, P)``, True at the front; grid: as :func:`grid` gives it.
    """
    total, count = torch.zeros_like(x[..., 0]), torch.zeros_like(x[..., 0])
    beside = valid[:, 1:]
    pairs = [(1, beside)]
    if grid is not None:
        high, wide = grid
        step = torch.arange(1, x.shape[1], device=x.device)
        pairs = [(1, beside & ((high == 0) | (step % wide > 0))), (wide, valid[:, wide:] & (high > 0))]
    for apart, both in pairs:
        far = torch.linalg.vector_norm(x[:, apart:] - x[:, : max(x.shape[1] - apart, 0)], dim=2) * both
        for ends in (slice(apart, None), slice(None, far.shape[1])):
            total[:, ends] += far
            count[:, ends] += both
    return total / count.clamp(min=1)


def segments(x: Tensor, frame: Tensor, least: int, threshold: float) -> Tensor:
    """``(B, F)``: FastVID's segment of each frame: cut where neighbours' mean tokens have a cosine below ``threshold``, and
    at the lowest ones for at least ``least`` segments; frames that a row lacks belong to the last."""
    mean = means(x, frame)
    like = torch.cosine_similarity(mean[:, 1:], mean[:, :-1], dim=2)
    there = torch.arange(1, mean.shape[1], device=x.device) <= frame.amax(1, keepdim=True)
    cut = (like < threshold) & there
    if there.shape[1]:
        cut |= top(-like, torch.full((len(x),), least - 1, device=x.device), there)
    return torch.cat([torch.zeros_like(frame[:, :1]), cut.long().cumsum(1)], 1)


def windows(still: Tensor) -> Tensor:
    """``(B, F)``: the first frame of each frame's window, for the windows that drop most tokens (HoliTom).

    A window from frame s to e drops e - s tokens at every place that is still from each of its frames to the next; the
    best cover of the clip is found by dynamic programming over frames, shorter windows first among equals.

    Args:
        still: ``(B, F, P)`` bool: the token hardly differs from the same place of the frame before.
    """
    batch, count, _ = still.shape
    run = torch.zeros_like(still[:, 0], dtype=torch.long)
    step = torch.arange(count, device=still.device)
    best: list[Tensor] = []
    start: list[Tensor] = []
    for e in range(count):
        run = torch.where(still[:, e], run + 1, 0) if e else run
        # At length w from s = e - w; a window of one frame drops nothing.
        gain = step[: e + 1] * (run[..., None] >= step[: e + 1]).sum(1)
        # The best cover before s; nothing lies before the first frame.
        earlier = torch.stack([*best[::-1], torch.zeros_like(run[:, 0])], 1)
        total, w = (earlier + gain).max(1)
        best.append(total)
        start.append(e - w)
    out, end = torch.zeros(batch, count, dtype=torch.long, device=still.device), None
    for e in range(count - 1, -1, -1):
        out[:, e] = start[e] if end is None else torch.where(end <= e, end, start[e])
        end = out[:, e]
    return out


def fixtures(frame: Tensor, still: Tensor) -> tuple[Tensor, Tensor]:
    """What stays as it is through a whole window of :func:`windows`.

    Args:
        still: ``(B, N)`` bool: the token hardly differs from the same place of the frame right before.

    Returns:
        ``(B, N)`` bool, tokens at such places, and ``(B, N)`` long, the first token of each token's place in its window.
    """
    place, valid = table(frame)
    start = windows(still.gather(1, place.flatten(1)).view_as(valid) & valid)
    there = torch.arange(start.shape[1], device=frame.device) <= frame.amax(1, keepdim=True)
    length = group_sizes(start, there, start.shape[1])
    own = start.gather(1, frame.clamp(min=0))
    head = twins.heads(own * frame.shape[1] + places(frame), frame >= 0)
    steady = torch.zeros_like(frame).scatter_add_(1, head.clamp(min=0), (still & (frame > own)).long())
    length = length.gather(1, own)
    return (steady.gather(1, head.clamp(min=0)) == length - 1) & (length > 1) & (frame >= 0), head


def peaks(x: Tensor, count: Tensor, place: Tensor, candidates: Tensor, neighbours: int) -> Tensor:
    """``(B, N)``: the ``count[b, f]`` density peaks of every frame of a table among its candidates ``(B, F, P)``."""
    out, asked = torch.zeros_like(candidates).flatten(0, 1), (count.flatten() > 0).nonzero()[:, 0]
    if len(asked):
        own = rows(x, place)[asked]
        out[asked] = density_peaks(own, count.flatten()[asked], candidates.flatten(0, 1)[asked], neighbours)
    return back(out.view_as(candidates), place, candidates, x.shape[1], False)
