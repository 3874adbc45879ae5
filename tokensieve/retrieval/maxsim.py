"""MaxSim: late-interaction scores, exact, in blocks, never padded to the longest document."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokensieve.retrieval.ragged import Documents, Ragged, bounds, rows

GROUP = 8
RUN = 512
"""Rows for each change of length from which runs of one length are reduced by themselves."""
TABLE = 1 << 21
"""Similarities held at once: 8 MB."""
TABLE_DEVICE = 1 << 26
COPIED = 4096
"""Tokens of listed documents copied behind each other at once."""


@torch.no_grad()
def maxsim(query: Any, documents: Documents) -> Tensor:
    """The sum over query tokens of their largest dot product with a token of the document.

    Args:
        query: ``(Q, d)``, or many: ``(B, Q, d)`` or a list of ``(q_i, d)``.
        documents: ``(D, N, d)``, a list of ``(n_i, d)``, or a :class:`Ragged`, which is fastest for ragged documents.

    Returns:
        ``(D,)``, or ``(B, D)`` for many queries; float32 (float64 where the documents are).
    """
    single, queries = queries_of(query)
    docs = _Rows(documents)
    if docs.dim is not None and docs.dim != queries.dim:
        raise ValueError(f"the query has {queries.dim} dimensions, the documents have {docs.dim}")
    dtype = torch.float64 if docs.dtype == torch.float64 else torch.float32
    right = queries.tokens.to(device=docs.device, dtype=dtype).T.contiguous()

    def table(first: int, last: int, start: int, stop: int, out: Tensor) -> Tensor:
        done = 0
        for part in docs.tokens(first, last, start, stop):
            torch.mm(part.to(dtype), right, out=out[done : done + len(part)])
            done += len(part)
        return out

    out = right.new_empty(len(docs.offsets) - 1, len(queries))
    for first, last, best in best_matches(table, docs.offsets, right):
        out[first:last] = sums(best, queries.offsets)
    return out[:, 0] if single else out.T


def queries_of(query: Any) -> tuple[bool, Ragged]:
    """Whether it is one query, and all of them as one Ragged."""
    single = isinstance(query, (Tensor, np.ndarray)) and query.ndim == 2
    queries = Ragged.of(torch.as_tensor(query)[None] if single else query)
    if not len(queries) or bool((queries.lengths == 0).any()):
        raise ValueError("a query without tokens has no scores; pass at least one token vector")
    if not bool(queries.tokens.isfinite().all()):
        raise ValueError("the query holds NaN or infinite values")
    return single, queries


Table = Callable[[int, int, int, int, Tensor], Tensor]


def best_matches(table: Table, offsets: Tensor, like: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """For each run of documents, the best similarity of each query token, ``(last - first, Q)``.

    Args:
        table: ``table(first, last, start, stop, out)`` writes the similarities of tokens ``start`` to ``stop``, counted
            from document ``first``, of documents ``first`` to ``last``.
        offsets: ``(D + 1,)``; like: ``(d, Q)``, for the number of query tokens, dtype and device.
    """
    width, cuts = like.shape[1], offsets.tolist()
    most = max((TABLE if like.device.type == "cpu" else TABLE_DEVICE) // width, 16)
    buffer = like.new_empty(min(most, cuts[-1]), width)
    for first, last in runs(cuts, most):
        n = cuts[last] - cuts[first]
        if n <= most:
            part = table(first, last, 0, n, buffer[:n])
            yield first, last, segment_max(part, offsets[first : last + 1] - cuts[first])
        else:
            # One document longer than a block.
            pieces = (table(first, last, a, min(a + most, n), buffer[: min(most, n - a)]) for a in range(0, n, most))
            best = like.new_full((1, width), -torch.inf)
            for piece in pieces:
                best = best.maximum(piece.amax(0, keepdim=True))
            yield first, last, best


def runs(cuts: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """Runs of documents of at most ``most`` tokens together; a longer document is a run of its own."""
    ends = np.asarray(cuts)
    first = 0
    while first < len(ends) - 1:
        last = max(int(np.searchsorted(ends, ends[first] + most, side="right")) - 1, first + 1)
        yield first, last
        first = last


def segment_max(x: Tensor, offsets: Tensor) -> Tensor:
    """``(D, Q)``: the maximum over the rows of each document, from ``(T, Q)``.

    Neighbours of one length are reduced together. Where lengths change often, rows are reduced eight at a time where that
    is aligned, and the first and the last seven of a document cover what is not.
    """
    lengths = offsets.diff()
    if not len(lengths):
        return x.new_empty(0, x.shape[1])
    if not bool(lengths.all()):
        raise ValueError(f"document {int(lengths.argmin())} has no tokens")
    changes = [0, *(lengths.diff().nonzero()[:, 0] + 1).tolist(), len(lengths)]
    if len(changes) == 2 or len(changes) < len(x) // RUN:
        cuts, sizes = offsets[changes].tolist(), lengths[changes[:-1]].tolist()
        parts = zip(pairwise(cuts), sizes, strict=True)
        return torch.cat([x[a:b].view(-1, n, x.shape[1]).amax(1) for (a, b), n in parts])
    start, stop, near = offsets[:-1], offsets[1:], torch.arange(GROUP - 1)
    ends = torch.cat(
        [(start[:, None] + near).minimum(stop[:, None] - 1), (stop[:, None] - 1 - near).maximum(start[:, None])], 1
    )
    out = x.index_select(0, ends.flatten().to(x.device)).view(*ends.shape, x.shape[1]).amax(1)
    whole = len(x) // GROUP
    grouped = x[: whole * GROUP].view(whole, GROUP, x.shape[1]).amax(1)
    low, high = (start + GROUP - 1) // GROUP, stop // GROUP
    # The maxima of 1, 2, 4, ... groups from each on: two of them that overlap cover those inside a document.
    power = (high - low).clamp(min=0.5).log2().floor()
    span = 1
    for level in range(int(power.max()) + 1):
        docs = (power == level).nonzero()[:, 0]
        a, b, docs = low[docs].to(x.device), (high[docs] - span).to(x.device), docs.to(x.device)
        inner = grouped.index_select(0, a).maximum(grouped.index_select(0, b))
        out.index_copy_(0, docs, out.index_select(0, docs).maximum(inner))
        grouped = grouped[:-span].maximum(grouped[span:]) if len(grouped) > span else grouped
        span *= 2
    return out


def sums(best: Tensor, offsets: Tensor) -> Tensor:
    """``(D, B)``: the best similarities ``(D, Q)`` summed over the tokens of each query."""
    return torch.stack([part.sum(1) for part in best.split(offsets.diff().tolist(), 1)], 1)


def align(query: Tensor, document: Tensor) -> tuple[Tensor, Tensor]:
    """The best similarity of each query token and the document token it is found at (the first of equals), ``(Q,)`` each."""
    best = (query.float() @ document.float().T).max(1)
    return best.values, best.indices


class _Rows:
    """Runs of documents as one tensor; those of a list are copied one run at a time."""

    def __init__(self, documents: Documents) -> None:
        listed = not isinstance(documents, (Ragged, Tensor, np.ndarray))
        self._list = rows(documents) if listed else None  # type: ignore[arg-type]
        if self._list is not None:
            self._all, self.offsets = None, bounds([len(p) for p in self._list])
            first = self._list[0] if self._list else torch.empty(0, 0)
        else:
            packed = Ragged.of(documents)
            self._all, self.offsets, first = packed.tokens, packed.offsets.cpu(), packed.tokens
        self.dim = first.shape[1] if len(self.offsets) > 1 else None
        self.device, self.dtype = first.device, first.dtype
        self._cuts = self.offsets.tolist()
        self._buffer = first.new_empty(COPIED if listed else 0, first.shape[1])

    def tokens(self, first: int, last: int, start: int, stop: int) -> Iterator[Tensor]:
        """Pieces of what is asked for, each to be used before the next."""
        if self._all is not None:
            yield self._all[self._cuts[first] + start : self._cuts[first] + stop]
            return
        assert self._list is not None
        if last == first + 1:
            yield self._list[first][start:stop]
            return
        for a, b in runs(self._cuts[first : last + 1], COPIED):
            some = self._list[first + a : first + b]
            if len(some) == 1:
                yield some[0]
            else:
                n = self._cuts[first + b] - self._cuts[first + a]
                yield torch.cat(some, out=self._buffer[:n])
