"""Pages: rows of very different lengths in one tensor, and attention over them without padding to the longest."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

PAGES = (64, 32, 16, 8)
FEW = 8
"""So many rows of float32 take less time one after the other than in pages; those of bfloat16 take more."""
EMPTY = 64
"""Pages are as long as they can be with one place in so many empty."""


def fitting(counts: Tensor) -> int:
    """The longest page that leaves few places empty in rows of ``counts`` entries, ``(R,)``; the shortest where none does."""
    counts = counts.cpu()
    empty = {page: int((-counts % page).sum()) for page in PAGES}
    return next((page for page in PAGES if empty[page] * EMPTY <= int(counts.sum())), PAGES[-1])


@dataclass(frozen=True)
class Pages:
    """Keys and values of R rows, cut into pages of equal size; a row's last page may be part empty.

    Attributes:
        keys: ``(P, page, d)``; values: ``(P, page, d')``.
        owner: ``(P,)`` long, the row of each page, ascending.
        counts: ``(R,)`` long, the entries of each row.
    """

    keys: Tensor
    values: Tensor
    owner: Tensor
    counts: Tensor

    @classmethod
    def of(cls, keys: Tensor, values: Tensor, at: Tensor, valid: Tensor) -> Pages:
        """From rows ``(R, N, d)`` those at ``(R, M)`` long, where ``valid``: ``(R, M)`` bool, True at the front of each row."""
        counts = valid.sum(1)
        page = fitting(counts)
        number = (counts + page - 1) // page
        owner = torch.arange(len(counts), device=counts.device).repeat_interleave(number)
        row, place = valid.nonzero(as_tuple=True)
        slot = ((number.cumsum(0) - number) * page)[row] + place
        source = torch.zeros(len(owner) * page, dtype=torch.long, device=slot.device)
        source[slot] = row * keys.shape[1] + at[valid]
        empty = torch.ones_like(source, dtype=torch.bool)
        empty[slot] = False

        def lay(x: Tensor) -> Tensor:
            return x.flatten(0, 1).index_select(0, source).masked_fill_(empty[:, None], 0).unflatten(0, (-1, page))

        return cls(lay(keys), lay(values), owner, counts)

    @cached_property
    def spans(self) -> list[slice]:
        """Where each row's entries stand among those of all pages, one after another."""
        page, counts = self.keys.shape[1], self.counts.tolist()
        number = self.owner.bincount(minlength=len(counts))
        starts = ((number.cumsum(0) - number) * page).tolist()
        return [slice(start, start + count) for start, count in zip(starts, counts, strict=True)]

    @cached_property
    def valid(self) -> Tensor:
        """``(P, page)`` bool: False where a page is empty."""
        number = self.owner.bincount(minlength=len(self.counts))
        first = (number.cumsum(0) - number)[self.owner]
        page = self.keys.shape[1]
        left = self.counts[self.owner] - (torch.arange(len(self.owner), device=self.owner.device) - first) * page
        return torch.arange(page, device=self.owner.device) < left[:, None]

    def padded(self, width: int) -> tuple[Tensor, Tensor]:
        """Keys and values as padded rows ``(R, width, d)``; no row may be longer."""
        held = self.valid
        row, place = (torch.arange(width, device=self.counts.device) < self.counts[:, None]).nonzero(as_tuple=True)

        def laid(x: Tensor) -> Tensor:
            out = x.new_zeros(len(self.counts), width, x.shape[2])
            out[row, place] = x[held]
            return out

        return laid(self.keys), laid(self.values)

    def rows(self, index: Tensor) -> Pages:
        """Some rows, ``(R',)`` long, in another order or repeated."""
        number = self.owner.bincount(minlength=len(self.counts))
        start, count = (number.cumsum(0) - number)[index], number[index]
        owner = torch.arange(len(index), device=index.device).repeat_interleave(count)
        page = start[owner] + torch.arange(len(owner), device=index.device) - (count.cumsum(0) - count)[owner]
        return Pages(self.keys[page], self.values[page], owner, self.counts[index])


def attend(
    query: Tensor, pages: Pages, keys: Tensor, values: Tensor, scale: float, allowed: Tensor | None = None
) -> Tensor:
    """Attention of each row's queries over its pages and over what has come since, in one softmax.

    Args:
        query: ``(R, T, d)``.
        keys, values: ``(R, N, d)``, what has come since, at least one entry.
        allowed: additive, broadcastable to ``(R, T, N)``; None for all.

    Returns:
        ``(R, T, d')``. Memory P x T x page.
    """
    if len(query) <= FEW and query.dtype == torch.float32:
        return _row_by_row(query * scale, pages, keys, values, allowed)
    paged = torch.bmm(query[pages.owner] * scale, pages.keys.transpose(1, 2)).float()
    paged = paged.masked_fill_(~pages.valid[:, None], -torch.inf)
    late = torch.bmm(query * scale, keys.transpose(1, 2)).float()
    late = late if allowed is None else late + allowed
    owner = pages.owner[:, None].expand(-1, query.shape[1])
    top = late.amax(2).scatter_reduce(0, owner, paged.amax(2), "amax").clamp(min=torch.finfo(torch.float32).min)
    paged, late = (paged - top[pages.owner][..., None]).exp_(), (late - top[..., None]).exp_()
    total = late.sum(2).index_add_(0, pages.owner, paged.sum(2))
    out = torch.bmm(late.to(values.dtype), values).float()
    out.index_add_(0, pages.owner, torch.bmm(paged.to(values.dtype), pages.values).float())
    return (out / total[..., None].clamp(min=1e-30)).to(query.dtype)


def _row_by_row(query: Tensor, pages: Pages, keys: Tensor, values: Tensor, allowed: Tensor | None) -> Tensor:
    """As :func:`attend`, of scaled queries, without moving an entry."""
    held, out = (pages.keys.flatten(0, 1), pages.values.flatten(0, 1)), []
    for row, span in enumerate(pages.spans):
        k, v = (x[span] for x in held)
        late = (query[row] @ keys[row].t()).float()
        if allowed is not None:
            late = late + allowed[row if len(allowed) > 1 else 0]
        share = torch.cat([(query[row] @ k.t()).float(), late], 1).softmax(-1).to(values.dtype)
        out.append(torch.addmm(share[:, len(k) :] @ values[row], share[:, : len(k)], v))
    return torch.stack(out)


def by_row(query: Tensor, pages: Pages, keys: Tensor, values: Tensor, scale: float, allowed: Tensor) -> Tensor:
    """As :func:`attend`, one row after another in torch's own kernel: for many queries at once, where it is faster and holds no
    map.

    Args:
        query: ``(R, groups, T, d)``; keys, values: ``(R, N, d)``; allowed: additive, ``(R, T, N)``.

    Returns:
        ``(R, groups, T, d')``.
    """
    out = []
    for row, span in enumerate(pages.spans):
        held = (x.flatten(0, 1)[span] for x in (pages.keys, pages.values))
        k, v = (torch.cat([front, late[row]])[None] for front, late in zip(held, (keys, values), strict=True))
        mask = torch.cat([allowed.new_zeros(query.shape[2], span.stop - span.start), allowed[row]], 1)
        k, v = (x.expand(query.shape[1], -1, -1) for x in (k, v))
        out.append(scaled_dot_product_attention(query[row][None], k[None], v[None], mask[None, None], scale=scale)[0])
    return torch.stack(out)
