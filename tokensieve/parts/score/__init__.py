"""Score: which tokens matter. Every score is ``(B, N)``, higher is kept first."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, max_pool1d, normalize, pad

from tokensieve._moved import below
from tokensieve.core.needs import Need, Relevance
from tokensieve.core.signal_table import signal
from tokensieve.core.signals import Signals
from tokensieve.parts import select
from tokensieve.parts.numeric import twins


def attention(s: Signals, need: Need) -> Tensor:
    """Attention paid to each token, averaged over heads and over the layers of the need."""
    rows = [per_token(s.get(need, layer)[1]) for layer in need.layers or (None,)]
    return rows[0] if len(rows) == 1 else torch.stack(rows, 1).mean(1, dtype=torch.float64).to(rows[0].dtype)


def per_token(a: Tensor) -> Tensor:
    """``(B, N)`` from ``(B, ..., N)``: the mean over heads, queries and layers.

    In double precision, whose rounding is far below that of the result: equal columns have equal means, wherever they stand.
    """
    return a if a.dim() == 2 else a.flatten(1, -2).mean(1, dtype=torch.float64).to(a.dtype)


def observed(s: Signals, need: Need, kernel: int, pooling: str, group: Tensor | None = None) -> Tensor:
    """``(B, N)``: SnapKV's vote: mean attention of the last tokens to all others, smoothed over neighbours.

    Args:
        need: the attention rows of the last ``need.window`` tokens; those tokens themselves (of each group) get zero.
        kernel, pooling, group: as for :func:`smoothed`.
    """
    rows = s.get(need)[1]
    return smoothed(per_token(rows), s.valid & ~recent(s, need.window, group), kernel, pooling, group)


def recent(s: Signals, count: int | Tensor, group: Tensor | None = None) -> Tensor:
    """``(B, N)`` bool: the last ``count`` tokens (an int, ``(B,)``, or ``(B, G)``), of each group where there are groups."""
    if group is None:
        return select.last(torch.as_tensor(count, device=s.device).expand(s.batch), s.valid)
    each = torch.as_tensor(count, device=s.device).expand(s.batch, int(group.max()) + 1)
    place = torch.arange(s.n, device=s.device, dtype=torch.float64).expand(s.batch, -1)
    return select.top_of_each(place, each, group, s.valid)


def smoothed(a: Tensor, candidates: Tensor, width: int, pooling: str, group: Tensor | None = None) -> Tensor:
    """``(B, N)``: every candidate's "mean" or "max" over ``width`` neighbouring candidates (an odd number); zero elsewhere.

    As in SnapKV's code, what lies beyond the ends counts as zero in means. What is no candidate is left out, as if it were not
    there.

    Args:
        group: ``(B, N)`` long; neighbours are of the same group.
    """
    place, valid = _front(candidates)
    row = torch.where(valid, a.gather(1, place), 0.0)
    if group is None:
        pool = avg_pool1d if pooling == "mean" else max_pool1d
        out = pool(row[:, None], width, stride=1, padding=width // 2)[:, 0]
    else:
        side = width // 2
        near = pad(row, (side, side)).unfold(1, width, 1)
        own = group.gather(1, place)
        same = pad(own, (side, side), value=-1).unfold(1, width, 1) == own[..., None]
        out = (
            torch.where(same, near, 0.0).sum(-1) / width if pooling == "mean" else torch.where(same, near, 0.0).amax(-1)
        )
    return torch.zeros_like(a).scatter_(1, place, torch.where(valid, out, 0.0))


def _front(candidates: Tensor) -> tuple[Tensor, Tensor]:
    """As `select.compact`, without sorting where all rows have the same candidates."""
    if not bool((candidates == candidates[:1]).all()) or not bool(candidates[0].any()):
        return select.compact(candidates)
    place = candidates[0].nonzero()[:, 0].expand(len(candidates), -1)
    return place, torch.ones_like(place, dtype=torch.bool)


def eviction_error(a: Tensor, values: Tensor, candidates: Tensor, fast: bool = False) -> Tensor:
    """``(B, H, N)``: by how much losing each entry alone changes the attention output, in Euclidean length.

    Args:
        a: ``(B, H, N)``, what weighs the entries, taken as shares of its sum; from its least value on, where that is negative.
        values: ``(B, N, d)``; candidates: ``(B, N)`` bool; fast: the mean value stands for the output.
    """
    low = a.masked_fill(~candidates[:, None], torch.inf).amin(2, keepdim=True).clamp(max=0)
    a = torch.where(candidates[:, None], a - low, 0.0)
    a = a / a.sum(2, keepdim=True).clamp(min=1e-12)
    values = torch.where(candidates[..., None], values, 0.0)
    centre = values.sum(1) / candidates.sum(1, keepdim=True).clamp(min=1)
    out = []
    for one in a.unbind(1):  # all heads at once would hold the values as many times
        at = centre if fast else (one[:, None] @ values)[:, 0]
        out.append(torch.linalg.vector_norm(values - at[:, None], dim=-1) * one / (1 - one).clamp(min=1e-12))
    return torch.stack(out, 1)


def composite(a: Tensor, candidates: Tensor) -> Tensor:
    """``(B, N)``: what slots are worth that hold every head's best, every head's second, ...: the mean over heads; 0 for none.

    Args:
        a: ``(B, G, N)``, each head's own score; candidates: ``(B, G, N)`` bool.
    """
    return (
        a.masked_fill(~candidates, -torch.inf)
        .sort(dim=2, descending=True)[0]
        .clamp(min=0)
        .mean(1, dtype=torch.float64)
        .to(a.dtype)
    )


def normalized(a: Tensor, candidates: Tensor) -> Tensor:
    """``(B, N)``: values, not negative, as shares of their sum over the candidates; zero elsewhere."""
    a = torch.where(candidates, a, 0.0)
    return a / a.sum(1, keepdim=True).clamp(min=1e-12)


def text_rows(s: Signals, need: Need) -> tuple[Tensor, Tensor]:
    """Attention rows of text tokens over visual tokens, ``(B, T, N)``, averaged over heads, and which of them are valid.

    From the signal that ``need`` finds: attention rows as they are; text embeddings t as softmax(t x^T / sqrt(D)) over
    the visual tokens x; a signal with one value per visual token as a single row.
    """
    name, value = s.get(need)
    if name == "text":
        like = value @ s.features.transpose(1, 2) * s.features.shape[2] ** -0.5
        like = twins.level(like, twins.firsts(s.features), 2)
        rows = like.masked_fill(~s.valid[:, None], -torch.inf).softmax(-1)
    elif name == "text_attention":
        rows = value if value.dim() == 3 else value.mean(1, dtype=torch.float64).to(value.dtype)
    else:
        rows = per_token(value)[:, None]
    if s.text_mask is not None and name in ("text", "text_attention"):
        return rows, s.text_mask.bool()
    return rows, torch.ones(rows.shape[:2], dtype=torch.bool, device=rows.device)


def text_heads(s: Signals, need: Need) -> Tensor:
    """``(B, heads, N)``: attention of the text to visual tokens, averaged over text tokens; a stand-in makes one head."""
    name, value = s.get(need)
    if name != "text_attention" or value.dim() == 3:
        return mean_row(*text_rows(s, need))[:, None]
    valid = torch.ones_like(value[:, 0, :, 0]) if s.text_mask is None else s.text_mask.to(value.dtype)
    weight = valid / valid.sum(1, keepdim=True).clamp(min=1)
    return (value * weight[:, None, :, None]).sum(2, dtype=torch.float64).to(value.dtype)


def cosine(a: Tensor, x: Tensor) -> Tensor:
    """``(B, M, N)``: cosines of ``a`` (``(B, M, D)``, the shorter one) with ``x`` (``(B, N, D)``), of which no copy is made."""
    length = torch.linalg.vector_norm(x, dim=-1).clamp(min=1e-12)
    return twins.level((normalize(a, dim=-1) @ x.transpose(1, 2)).div_(length[:, None]), twins.firsts(x), 2)


def similarity(s: Signals, need: Need) -> tuple[Tensor, Tensor]:
    """Similarity of text tokens to visual tokens, ``(B, T, N)``, and which of them are valid.

    From the signal that ``need`` finds: ``relevance`` as it is, or cosines of text embeddings with the features.
    """
    name, value = s.get(need)
    rows = value if name == "relevance" else cosine(value, s.features)
    if rows.dim() == 2:
        return rows[:, None], torch.ones_like(rows[:, :1], dtype=torch.bool)
    return rows, valid_text(s, rows)


def valid_text(s: Signals, rows: Tensor) -> Tensor:
    """``(B, T)`` bool: which of the text tokens that ``rows``, ``(B, T, ...)``, speaks of are no padding."""
    return torch.ones_like(rows[..., 0], dtype=torch.bool) if s.text_mask is None else s.text_mask.bool()


def relevance(s: Signals) -> Tensor:
    """``(B, N)``: how much each visual token has to do with the text, in a space they share.

    The signal ``relevance`` (averaged over text tokens where it has one row for each), or the mean over text tokens of
    their cosine with the features.
    """
    return mean_row(*similarity(s, Relevance))


def best_row(rows: Tensor, candidates: Tensor) -> Tensor:
    """``(B, N)``: the highest value over those rows that ``candidates`` (``(B, T)`` bool) names; zero where it names none."""
    best = rows.masked_fill(~candidates[..., None], -torch.inf).amax(1)
    return best.masked_fill(~candidates.any(1, keepdim=True), 0.0)


def last_row(rows: Tensor, valid: Tensor) -> Tensor:
    """``(B, N)``: of :func:`text_rows`, the row of the last valid token."""
    last = torch.where(valid, torch.arange(valid.shape[1], device=valid.device), -1).amax(1).clamp(min=0)
    return rows[torch.arange(rows.shape[0], device=rows.device), last]


def mean_row(rows: Tensor, candidates: Tensor) -> Tensor:
    """``(B, N)``: the mean of those rows that ``candidates`` (``(B, T)`` bool) names."""
    weight = candidates.to(rows.dtype) / candidates.sum(1, keepdim=True).clamp(min=1)
    return (rows * weight[..., None]).sum(1, dtype=torch.float64).to(rows.dtype)


def raters(text: Tensor, text_valid: Tensor, x: Tensor, valid: Tensor) -> Tensor:
    """Text tokens that have much to do with the image, ``(B, T)`` bool: at least one, and each at least average.

    A text token's relevance is the mean over visual tokens x of softmax(x t^T), the softmax running over the text.
    """
    like = x @ text.transpose(1, 2)
    attention = like.masked_fill(~text_valid[:, None], -torch.inf).softmax(-1)
    relevance = mean_row(attention, valid)
    mean = torch.where(text_valid, relevance, 0.0).sum(1, keepdim=True) / text_valid.sum(1, keepdim=True).clamp(min=1)
    # Equal relevances may all round to just below their mean.
    return text_valid & (relevance >= mean.minimum(relevance.amax(1, keepdim=True)))


def entropy(pixels: Tensor, patch: int, levels: int = 256) -> Tensor:
    """``(B, N)``: the entropy of each patch's grey levels, in bits, row by row.

    Args:
        pixels: ``(B, C, H, W)``; grey is the mean of the channels, and each image's greys, from its least to its greatest,
            fall into ``levels`` equal bins.
        patch: the side of a patch.
    """
    flat = pixels.detach().float().mean(1, keepdim=True)
    low, high = flat.flatten(1).aminmax(dim=1)
    scale = (levels - 1) / (high - low).clamp(min=1e-12)
    level = ((flat - low[:, None, None, None]) * scale[:, None, None, None]).round().long()
    level = level.unfold(2, patch, patch).unfold(3, patch, patch).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    count = torch.zeros(*level.shape[:2], levels, device=pixels.device)
    count.scatter_add_(2, level, torch.ones_like(level, dtype=count.dtype))
    return torch.special.entr(count / level.shape[2]).sum(2) / math.log(2)


def apart(s: Signals) -> tuple[Signals, Tensor]:
    """Signals whose rows are those of ``s`` times its heads, for scores that look at one head; and ``(B G, M)`` long, where each
    of its entries stands in ``s``, -1 at padding. Knows signals of which one tensor is given, as of cache entries."""
    heads = torch.arange(int(s.heads.max()) + 1, device=s.device)[None, :, None]
    place, filled = select.compact(((s.heads[:, None] == heads) & s.valid[:, None]).flatten(0, 1))
    where = place.masked_fill(~filled, -1)
    # A row may hold no entry of some head.
    filled = filled | (~filled.any(1, keepdim=True) & (torch.arange(place.shape[1], device=s.device) == 0))
    each = place.unflatten(0, (s.batch, -1))

    def of(x: Tensor, axis: int) -> Tensor:
        axis %= x.dim()
        shape = [*x.shape[:1], each.shape[1], *x.shape[1:axis], each.shape[2], *x.shape[axis + 1 :]]
        index = each.view(*each.shape[:2], *[1] * (axis - 1), -1, *[1] * (x.dim() - axis - 1)).expand(shape)
        return x[:, None].expand(-1, each.shape[1], *x.shape[1:]).gather(axis + 1, index).flatten(0, 1)

    given: dict[str, Any] = {
        name: of(x, axis)
        for name, x in s.given.items()
        if name not in ("features", "mask", "head") and isinstance(x, Tensor) and (axis := signal(name).axis)
    }
    mask = None if bool(filled.all()) else filled
    return Signals.of(of(s.features, 1), mask=mask, seed=s.seed, **given), where


def together(x: Tensor, where: Tensor, s: Signals) -> Tensor:
    """``(B, N)``: values ``(B G, M)`` of each head's entries, as :func:`apart` laid them, back in their rows; 0 at padding."""
    out = x.new_zeros(s.batch, s.n + 1)
    at = where.masked_fill(where < 0, s.n).view(s.batch, -1)
    return out.scatter_(1, at, x.reshape(s.batch, -1))[:, :-1]


__getattr__ = below(__name__)
