"""Transform: token reduction as an explicit matrix, ``(B, M, N)``, of which pruning and merging are special forms.

Slots are the chosen tokens in ascending order; a row that keeps fewer than M has empty slots at the end.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokensieve.parts.select import compact, take

BLOCK = 2048


def pruning(chosen: Tensor) -> Tensor:
    """One to one: every slot is its own token, all else is dropped."""
    place, valid = compact(chosen)
    out = torch.zeros(*place.shape, chosen.shape[1], device=chosen.device)
    return out.scatter_(2, place[..., None], valid[..., None].float())


def merging(chosen: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Many to one: every token goes to the chosen one that ``target`` names (none at -1); slots are weighted means."""
    slot = chosen.long().cumsum(1) - 1
    owner = torch.where(chosen, slot, slot.gather(1, target.clamp(min=0)).clamp(min=0))
    passed = torch.where(chosen | (target >= 0), weight, 0.0)
    out = torch.zeros(chosen.shape[0], int(slot[:, -1].max()) + 1, chosen.shape[1], device=chosen.device)
    return means(out.scatter_(1, owner[:, None], passed[:, None]))


@torch.no_grad()
def assign(metric: Tensor, chosen: Tensor, scale: float) -> Tensor:
    """Many to many: every column is a token's softmax over the slots of ``scale`` times its dot product with them."""
    place, valid = compact(chosen)
    anchors = take(metric, place) * scale
    out = metric.new_empty(*place.shape, chosen.shape[1])
    size = max(BLOCK // len(metric), 64)
    for columns, rows in zip(out.split(size, dim=2), metric.split(size, dim=1), strict=True):
        like = (anchors @ rows.transpose(1, 2)).masked_fill_(~valid[..., None], -torch.inf)
        columns.copy_(like.softmax(1))
    return out


@torch.no_grad()
def through(rows: Tensor, valid: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """What passes between tokens through others (text), as two factors ``(B, M, T)`` and ``(B, T, N)``.

    ``rows`` is ``(B, T, N)``, what the valid ones of T attend to. A token passes itself on in proportion to what each
    attends to it, and they to the slots as they attend to these.
    """
    place, used = compact(chosen)
    rows = rows * valid[..., None]
    onto = rows.gather(2, place[:, None].expand(-1, rows.shape[1], -1)) * used[:, None]
    return onto.transpose(1, 2), rows / rows.sum(1, keepdim=True).clamp(min=1e-12)


@torch.no_grad()
def strongest(matrix: Tensor, chosen: Tensor, quantile: float) -> Tensor:
    """Keep of every column only what reaches its quantile over the slots in use (the largest does), in place."""
    n_valid = chosen.sum(1)
    place = (1 - quantile) * (n_valid - 1).double()
    low = place.long()
    for columns in matrix.split(max(BLOCK // len(matrix), 64), dim=2):
        values = columns.topk(min(int(low.max()) + 2, matrix.shape[1]), dim=1).values
        above, below = (values.gather(1, _row(i, values)) for i in (low, (low + 1).minimum(n_valid - 1)))
        edge = above + (place - low).to(values)[:, None, None] * (below - above)
        columns.masked_fill_(columns < edge, 0.0)
    return matrix


@torch.no_grad()
def compress(matrix: Tensor, chosen: Tensor, weight: Tensor) -> Tensor:
    """Share every token that is not chosen among slots as its column says; a slot keeps its own token whole. In place.

    Slots become means: own token, weight w, and shares of others, (w x + sum of a_i w_i x_i) / (w + sum of a_i w_i).
    """
    place, valid = compact(chosen)
    total = matrix.sum(1, keepdim=True)
    matrix.mul_((weight[:, None] / total.clamp(min=1e-12)).masked_fill_(chosen[:, None], 0.0))
    own = torch.where(valid, weight.gather(1, place), 0.0)
    matrix.scatter_add_(2, place[..., None], own[..., None])
    return means(matrix)


def means(matrix: Tensor) -> Tensor:
    """Rows scaled to sum to one, in place; empty ones stay empty."""
    return matrix.div_(matrix.sum(2, keepdim=True).clamp(min=1e-12))


def _row(index: Tensor, like: Tensor) -> Tensor:
    return index[:, None, None].expand(-1, 1, like.shape[2])
