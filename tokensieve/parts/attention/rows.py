"""Rows of attention from queries and keys: exactly those asked for, never the whole map."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tokensieve.parts.select import compact

BLOCK = 512
HELD = 1 << 24
"""Numbers held at once: 64 MB."""
NEAR, NEAR_BFLOAT16, FAR = 1 << 18, 1 << 20, 1 << 25
"""Likewise where they are few beside the cache: on a CPU, near the processor and in memory that need not be asked for anew, and
more of them where a product's numbers are half as large and it takes longer to begin; on other devices."""


def attend(query: Tensor, key: Tensor, scale: float, allowed: Tensor | None = None) -> Tensor:
    """Softmax attention rows, in float32.

    Args:
        query: ``(B, H, T, d)``; key: ``(B, G, N, d)`` with G dividing H (grouped queries).
        scale: what scores are multiplied by.
        allowed: bool, or additive, broadcastable to ``(B, 1, T, N)``.

    Returns:
        ``(B, H, T, N)``.
    """
    # The query heads of a key head on end: else its keys would be copied for each.
    q = query.float().unflatten(1, (key.shape[1], -1)).flatten(2, 3) * scale
    scores = (q @ key.float().transpose(-1, -2)).view(*query.shape[:3], key.shape[2])
    if allowed is not None:  # in place: rows may be as large as what they are read for
        scores = scores.masked_fill_(~allowed, -torch.inf) if allowed.dtype == torch.bool else scores.add_(allowed)
    probability = scores.softmax(-1)
    return probability.nan_to_num(0.0) if probability.requires_grad else probability.nan_to_num_(0.0)


def received(query: Tensor, key: Tensor, scale: float, allowed: Tensor | None = None, block: int = BLOCK) -> Tensor:
    """Mean attention that each key receives over all queries, ``(B, H, N)``; memory B x H x block x N."""
    total = query.new_zeros(query.shape[0], query.shape[1], key.shape[2], dtype=torch.float32)
    for start in range(0, query.shape[2], block):
        part = allowed if allowed is None or allowed.shape[-2] == 1 else allowed[..., start : start + block, :]
        total += attend(query[:, :, start : start + block], key, scale, part).sum(2)
    return total / query.shape[2]


def sampled(weight: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Which queries stand for all, by systematic sampling: the weights, laid end to end, are cut into stretches of equal length,
    and the query in the middle of each counts for it.

    Args:
        weight: ``(B, T)``, what each query counts, 0 at padding; of a row in which no more than ``count`` count, all of these
            are taken, as they are.

    Returns:
        ``(B, M)`` positions in order, at most ``count``, and what each counts; fewer where some outweigh a stretch. Where rows
        have different numbers, what is behind counts for nothing. Of each row it is the same, whatever it is padded with.
    """
    if weight.shape[1] <= count:
        return torch.arange(weight.shape[1], device=weight.device).expand_as(weight), weight
    ends = weight.double().cumsum(1)
    each = ends[:, -1:] / count
    middle = (torch.arange(count, device=weight.device) + 0.5) * each
    at = torch.searchsorted(ends, middle, right=True).clamp(max=weight.shape[1] - 1)
    counts = torch.zeros_like(weight).scatter_add_(1, at, each.to(weight.dtype).expand_as(at))
    counts = torch.where((weight > 0).sum(1, keepdim=True) <= count, weight, counts)
    place, _ = compact(counts > 0)
    return place, counts.gather(1, place)


@torch.no_grad()
def gathered(
    query: Tensor,
    key: Tensor,
    scale: float,
    at: Tensor,
    weight: Tensor,
    valid: Tensor | None = None,
    block: int | None = None,
) -> Tensor:
    """Attention that each of N keys gathers from queries, each of which sees none behind its own place.

    In bfloat16 logits are rounded as the model's own attention would round them, which a processor that has instructions for it
    computes several times as fast; all else is float32.

    Args:
        query: ``(B, H, T, d)``; key: ``(B, G, N, d)`` with G dividing H.
        at: ``(B, G, T)``, the places of the queries among the keys; fast where they are in order.
        weight: ``(B, T)``, what each query counts.
        valid: ``(B, G, N)`` bool, False at keys that nobody sees.
        block: queries at once; as many as :data:`NEAR` and :data:`FAR` allow if not given.

    Returns:
        ``(B, H, N)``, in float32.
    """
    batch, heads, length, _ = query.shape
    pairs, groups, n = batch * key.shape[1], heads // key.shape[1], key.shape[2]
    q, k = query.unflatten(1, (-1, groups)).flatten(0, 1), key.flatten(0, 1)
    each = weight.float().repeat_interleave(key.shape[1], 0)[:, None, None]
    places = at.flatten(0, 1)[:, None, :, None]
    hidden = None if valid is None else ~valid.flatten(0, 1)[:, None, None]
    out = torch.zeros(pairs, groups, n, device=query.device)
    rounded = q.dtype == k.dtype == torch.bfloat16
    few = FAR if query.device.type != "cpu" else NEAR_BFLOAT16 if rounded else NEAR
    block = block or min(max(few // (groups * n), 8), 128)
    blocks = [slice(start, min(start + block, length)) for start in range(0, length, block)]
    spans = [(int(at[..., part].min()) + 1, int(at[..., part].max()) + 1) for part in blocks]
    together = max(1, few // (groups * block * n))
    # Memory asked for anew costs as much as what is computed in it.
    room = torch.empty(min(together, pairs) * groups * block * n, device=query.device)
    logits = room.to(torch.bfloat16) if rounded else room
    for pair in range(0, pairs, together):
        rows = slice(pair, pair + together)
        near = k[rows].to(logits.dtype).transpose(1, 2)
        for part, (all_see, upto) in zip(blocks, spans, strict=True):
            asking = q[rows, :, part].to(logits.dtype).flatten(1, 2)
            shape = (len(asking), asking.shape[1], upto)
            product, scores = (x[: math.prod(shape)].view(shape) for x in (logits, room))
            torch.baddbmm(product, asking, near[:, :, :upto], beta=0, alpha=scale, out=product)
            scores = (scores.copy_(product) if rounded else scores).unflatten(1, (groups, -1))
            later = torch.arange(all_see, upto, device=scores.device) > places[rows, :, part]
            scores[..., all_see:] += torch.where(later, -torch.inf, 0.0)  # filling takes several times as long
            if hidden is not None:
                scores.masked_fill_(hidden[rows, ..., :upto], -torch.inf)
            probability = torch.softmax(scores, -1, out=scores)
            probability = probability if hidden is None else probability.nan_to_num_(0.0)
            out[rows, :, :upto] += (each[rows, ..., part] @ probability)[:, :, 0]
    return out.view(batch, heads, n)


def spread(rows: Callable[[int, int], Tensor], start: Tensor, steps: int, block: int = BLOCK) -> Tensor:
    """Where attention comes to rest: ``start`` sent along the attention rows ``steps`` times.

    Args:
        rows: the rows of queries ``first`` to ``last``, ``(B, H, last - first, N)``; asked for in blocks, once where all of
            them are few enough to be held (``HELD`` numbers), and once a step otherwise.
        start: ``(B, N)``, what each token holds at first.

    Returns:
        ``(B, H, N)``, what each holds in the end.
    """
    blocks = range(0, start.shape[1], block)
    known: dict[int, Tensor] = {}

    def at(i: int) -> Tensor:
        part = known[i] if i in known else rows(i, i + block)
        if part.numel() * len(blocks) <= HELD:
            known[i] = part
        return part

    state = start[:, None]
    for _ in range(steps):
        state = sum((state[..., None, i : i + block] @ at(i))[..., 0, :] for i in blocks)  # type: ignore[assignment]
    return state
