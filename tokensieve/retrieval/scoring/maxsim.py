"""MaxSim: late-interaction scores, exact, in blocks, never padded to the longest document."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokensieve.retrieval.scoring.ragged import Documents, Ragged, bounds, neighbours, rows

TABLE = 1 << 19
"""Similarities held at once: 2 MB, which stay in the caches until they are reduced."""
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
    queries = Ragged(torch.as_tensor(query), torch.tensor([0, len(query)])) if single else Ragged.of(query)
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
    width, cuts = like.shape[1], offsets.numpy()
    most = max((TABLE if like.device.type == "cpu" else TABLE_DEVICE) // width, 16)
    buffer = like.new_empty(min(most, int(cuts[-1])), width)
    spans = runs(cuts, most)
    for (first, last), best in zip(spans, maxima(offsets, spans, buffer), strict=True):
        n = int(cuts[last] - cuts[first])
        if n <= most:
            yield first, last, best(table(first, last, 0, n, buffer[:n]))
        else:
            # One document longer than a block.
            pieces = (table(first, last, a, min(a + most, n), buffer[: min(most, n - a)]) for a in range(0, n, most))
            high = like.new_full((1, width), -torch.inf)
            for piece in pieces:
                high = high.maximum(best(piece))
            yield first, last, high


def runs(cuts: Sequence[int] | np.ndarray, most: int) -> list[tuple[int, int]]:
    """Runs of documents of at most ``most`` tokens together; a longer document is a run of its own."""
    ends, first, out = np.asarray(cuts), 0, []
    while first < len(ends) - 1:
        last = max(int(ends.searchsorted(ends[first] + most, side="right")) - 1, first + 1)
        out.append((first, last))
        first = last
    return out


def segment_max(x: Tensor, offsets: Tensor) -> Tensor:
    """``(D, Q)``: the maximum over the rows of each document, from ``(T, Q)``."""
    return maxima(offsets, [(0, len(offsets) - 1)], x)[0](x)


def maxima(offsets: Tensor, spans: Sequence[tuple[int, int]], like: Tensor) -> list[Callable[[Tensor], Tensor]]:
    """For each span of documents, what takes the rows of their tokens ``(T, Q)`` to the maximum of each, ``(last - first, Q)``.

    All are made before the first is used: between products of matrices even small steps are slow, since their code has left
    the caches.

    Args:
        offsets: ``(D + 1,)``; like: as long as the longest span of several documents, for its dtype and device.
    """
    cuts = offsets.numpy()
    lengths = np.diff(cuts)
    if not lengths.all():
        raise ValueError(f"document {int(lengths.argmin())} has no tokens")
    length = int(lengths.max(initial=1)) if (lengths == lengths[:1]).all() else None
    if length is None and like.device.type == "cpu":
        _quiet()
        columns, values = torch.arange(len(like), dtype=torch.int32), like.new_ones(len(like))

    def reduce(first: int, last: int) -> Callable[[Tensor], Tensor]:
        if last == first + 1:
            return lambda x: x.amax(0, keepdim=True)
        if length is not None:
            return lambda x: x.view(-1, length, x.shape[1]).amax(1)
        n, ends = int(cuts[last] - cuts[first]), torch.from_numpy(cuts[first : last + 1] - cuts[first])
        if like.device.type != "cpu":
            return partial(torch.segment_reduce, reduce="max", offsets=ends.to(like.device), axis=0)
        # A sparse matrix of ones, a row for each document: the one reduction of rows that is fast on CPUs.
        ones = torch.sparse_csr_tensor(ends.int(), columns[:n], values[:n], (last - first, n), check_invariants=False)
        return lambda x: torch.sparse.mm(ones, x, "amax")

    return [reduce(first, last) for first, last in spans]


@cache
def _quiet() -> None:
    """Hear out what torch says once in a process of such matrices, that they are in beta."""
    none = torch.zeros(1, dtype=torch.long)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor(none, none[:0], torch.empty(0), (0, 0), check_invariants=False)


def sums(best: Tensor, offsets: Tensor) -> Tensor:
    """``(D, B)``: the best similarities ``(D, Q)`` summed over the tokens of each query."""
    if len(offsets) == 2:
        return best.sum(1, keepdim=True)
    return torch.stack([part.sum(1) for part in best.split(offsets.diff().tolist(), 1)], 1)


def align(query: Tensor, document: Tensor) -> tuple[Tensor, Tensor]:
    """The best similarity of each query token and the document token it is found at (the first of equals), ``(Q,)`` each."""
    best = (query.float() @ document.float().T).max(1)
    return best.values, best.indices


class _Rows:
    """Runs of documents as one tensor; those of a list are copied one run at a time where they lie apart."""

    def __init__(self, documents: Documents) -> None:
        listed = not isinstance(documents, (Ragged, Tensor, np.ndarray))
        self._list = rows(documents) if listed else []  # type: ignore[arg-type]
        self._all: Tensor | None
        if self._list:
            self._all, self.offsets = neighbours(self._list), bounds([p.shape[0] for p in self._list])
            first = self._list[0]
        else:
            packed = Ragged.of(documents)
            self._all, self.offsets, first = packed.tokens, packed.offsets.cpu(), packed.tokens
        self.dim = first.shape[1] if len(self.offsets) > 1 else None
        self.device, self.dtype = first.device, first.dtype
        self._cuts = self.offsets.tolist()
        self._buffer = first.new_empty(COPIED if self._all is None else 0, first.shape[1])

    def tokens(self, first: int, last: int, start: int, stop: int) -> Iterator[Tensor]:
        """Pieces of what is asked for, each to be used before the next."""
        if self._all is not None:
            yield self._all[self._cuts[first] + start : self._cuts[first] + stop]
            return
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
