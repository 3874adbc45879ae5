"""Score: which tokens matter. Every score is ``(B, N)``, higher is kept first."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tokensieve.needs import Need, Relevance
from tokensieve.parts.select import held, take
from tokensieve.signals import Signals


def attention(s: Signals, need: Need) -> Tensor:
    """Attention paid to each token, averaged over heads and over the layers of the need."""
    rows = [per_token(s.get(need, layer)[1]) for layer in need.layers or (None,)]
    return torch.stack(rows).mean(0) if len(rows) > 1 else rows[0]


def per_token(a: Tensor) -> Tensor:
    """``(B, N)`` from ``(B, N)`` or ``(B, heads, N)``: the mean over heads."""
    return a if a.dim() == 2 else a.mean(1)


def text_rows(s: Signals, need: Need) -> tuple[Tensor, Tensor]:
    """Attention rows of text tokens over visual tokens, ``(B, T, N)``, averaged over heads, and which are real.

    From the signal that ``need`` finds: attention rows as they are; text embeddings t as softmax(t x^T / sqrt(D)) over
    the visual tokens x; a signal with one value per visual token as a single row.
    """
    name, value = s.get(need)
    if name == "text":
        like = value @ s.features.transpose(1, 2) * s.features.shape[2] ** -0.5
        rows = like.masked_fill(~s.valid[:, None], -torch.inf).softmax(-1)
    elif name == "text_attention":
        rows = value if value.dim() == 3 else value.mean(1)
    else:
        rows = per_token(value)[:, None]
    if s.text_mask is not None and name in ("text", "text_attention"):
        return rows, s.text_mask.bool()
    return rows, torch.ones(rows.shape[:2], dtype=torch.bool, device=rows.device)


def cosines(s: Signals, text: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines of text tokens ``(B, T, D)`` with the features, ``(B, T, N)``, and which text tokens are real."""
    return normalize(text, dim=-1) @ normalize(s.features, dim=-1).transpose(1, 2), real_text(s, text)


def real_text(s: Signals, rows: Tensor) -> Tensor:
    """``(B, T)`` bool: which of the text tokens that ``rows``, ``(B, T, ...)``, speaks of are no padding."""
    return torch.ones_like(rows[..., 0], dtype=torch.bool) if s.text_mask is None else s.text_mask.bool()


def relevance(s: Signals) -> Tensor:
    """``(B, N)``: how much each visual token has to do with the text, in a space they share.

    The signal ``relevance`` (averaged over text tokens where it has one row for each), or the mean over text tokens of
    their cosine with the features.
    """
    name, value = s.get(Relevance)
    if name == "text":
        return mean_row(*cosines(s, value))
    return value if value.dim() == 2 else mean_row(value, real_text(s, value))


def last_row(rows: Tensor, real: Tensor) -> Tensor:
    """``(B, N)``: of :func:`text_rows`, the row of the last real token."""
    last = torch.where(real, torch.arange(real.shape[1], device=real.device), -1).amax(1).clamp(min=0)
    return rows[torch.arange(rows.shape[0], device=rows.device), last]


def mean_row(rows: Tensor, among: Tensor) -> Tensor:
    """``(B, N)``: the mean of those rows that ``among`` (``(B, T)`` bool) names."""
    weight = among.to(rows.dtype) / among.sum(1, keepdim=True).clamp(min=1)
    return (weight[:, None] @ rows)[:, 0]


def raters(text: Tensor, real: Tensor, x: Tensor, valid: Tensor) -> Tensor:
    """Text tokens that have much to do with the image, ``(B, T)`` bool: at least one, and each at least average.

    A text token's relevance is the mean over visual tokens x of softmax(x t^T), the softmax running over the text.
    """
    like = x @ text.transpose(1, 2)
    share = like.masked_fill(~real[:, None], -torch.inf).softmax(-1)
    relevance = mean_row(share, valid)
    mean = torch.where(real, relevance, 0.0).sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp(min=1)
    # Equal relevances may all round to just below their mean.
    return real & (relevance >= mean.minimum(relevance.amax(1, keepdim=True)))


def variety(x: Tensor, group: Tensor, groups: int, among: Tensor) -> Tensor:
    """``(B, N)``: the variance of a token's cosines to the other candidates of its group, 0 where it has none.

    ``group`` is ``(B, N)`` long, negative for none. Memory: groups x the square of the largest group's size.
    """
    place = torch.where(among & (group >= 0), group, groups)
    order = place.argsort(dim=1, stable=True)
    size = held(place, torch.ones_like(among), groups + 1)
    width, start = int(size[:, :groups].max()), size.cumsum(1) - size
    rank = torch.arange(width, device=x.device)
    real = rank < size[:, :groups, None]
    member = order.gather(1, (start[:, :groups, None] + rank).clamp(max=x.shape[1] - 1).flatten(1))
    unit = take(normalize(x, dim=-1), member).unflatten(1, (groups, width))
    like = unit @ unit.transpose(2, 3)
    other = real[:, :, None] & ~torch.eye(width, dtype=torch.bool, device=x.device)
    count = other.sum(3).clamp(min=1)
    mean = (like * other).sum(3) / count
    spread = ((like - mean[..., None]).square_().mul_(other)).sum(3) / count
    return torch.zeros_like(x[..., 0]).scatter_add_(1, member, (spread * real).flatten(1))
