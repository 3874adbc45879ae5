"""Ragged: documents of different lengths as one tensor of tokens and the offsets between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Ragged:
    """Documents behind each other: ``tokens`` ``(T, d)``; document i is ``tokens[offsets[i] : offsets[i + 1]]``."""

    tokens: Tensor
    offsets: Tensor

    def __post_init__(self) -> None:
        cuts = self.offsets
        if self.tokens.dim() != 2 or cuts.dim() != 1 or not len(cuts):
            raise ValueError(
                f"a Ragged takes tokens (T, d) and offsets (D + 1,), not {_shape(self.tokens)} and {_shape(cuts)}"
            )
        if int(cuts[0]) != 0 or int(cuts[-1]) != len(self.tokens) or bool((cuts.diff() < 0).any()):
            raise ValueError(f"offsets must rise from 0 to the number of tokens, {len(self.tokens)}")

    @classmethod
    def of(cls, documents: Documents) -> Ragged:
        """From a ``(D, N, d)`` array, a list of ``(n_i, d)`` arrays (copied), or a Ragged."""
        if isinstance(documents, Ragged):
            return documents
        if isinstance(documents, (Tensor, np.ndarray)):
            x = array(documents)
            if x.dim() != 3:
                raise ValueError(
                    f"documents must be (D, N, d), a list of (n_i, d) or a Ragged; this tensor is {_shape(x)}"
                )
            return cls(x.reshape(-1, x.shape[2]), torch.arange(len(x) + 1) * x.shape[1])
        parts = rows(documents)
        tokens = torch.cat(parts) if parts else torch.empty(0, 0)
        return cls(tokens, bounds([p.shape[0] for p in parts]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> Tensor:
        return self.tokens[int(self.offsets[i]) : int(self.offsets[i + 1])]

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.tokens.split(self.lengths.tolist()))

    def take(self, documents: Tensor) -> Ragged:
        """Some of the documents, ``(n,)`` long."""
        lengths = self.lengths[documents]
        return Ragged(self.tokens[spread(self.offsets[documents], lengths)], bounds(lengths))

    @property
    def dim(self) -> int:
        return self.tokens.shape[1]

    @property
    def lengths(self) -> Tensor:
        return self.offsets.diff()


Documents = Ragged | Tensor | np.ndarray | Sequence[Any]


def rows(documents: Sequence[Any]) -> list[Tensor]:
    """A list of ``(n_i, d)`` tensors, checked: two dimensions each, one d, floating point."""
    parts = [array(p) for p in documents]
    width = parts[0].shape[-1:] if parts else None
    # Of many thousands all are right; what is wrong is named below.
    if all(p.dim() == 2 and p.shape[1:] == width and p.is_floating_point() for p in parts):
        return parts
    for i, p in enumerate(parts):
        if p.dim() != 2:
            raise ValueError(f"document {i} must be (tokens, dimensions); it is {_shape(p)}")
        if p.shape[1] != parts[0].shape[1]:
            raise ValueError(f"document {i} has {p.shape[1]} dimensions, document 0 has {parts[0].shape[1]}")
        if not p.is_floating_point():
            raise ValueError(f"document {i} holds {p.dtype}; vectors are floating point")
    return parts


def array(x: Any) -> Tensor:
    """As a tensor; a copy of what torch takes no view of: read-only, reversed, or of the other byte order."""
    if isinstance(x, np.ndarray):
        x = np.require(x, x.dtype.newbyteorder("="), ("C", "W"))
    return torch.as_tensor(x)


def neighbours(parts: Sequence[Tensor]) -> Tensor | None:
    """``(n_1 + n_2 + ..., d)`` without a copy, where the parts lie behind each other in memory, as those split off one do."""
    first = parts[0]
    start = end = first.data_ptr()
    for p in parts:
        if p.data_ptr() != end or p.dtype != first.dtype or not p.is_contiguous():
            return None
        end += p.nbytes
    # Another's memory may begin where this one's ends.
    if end - start > first.untyped_storage().nbytes() - first.storage_offset() * first.element_size():
        return None
    width = first.shape[1]
    return first.as_strided(((end - start) // (width * first.element_size()), width), (width, 1))


def bounds(lengths: Sequence[int] | Tensor) -> Tensor:
    """``(D + 1,)`` offsets from D lengths."""
    out = torch.zeros(len(lengths) + 1, dtype=torch.long)
    out[1:] = torch.as_tensor(lengths, dtype=torch.long).cumsum(0)
    return out


def spread(starts: Tensor, lengths: Tensor) -> Tensor:
    """The positions ``starts[i] ... starts[i] + lengths[i] - 1`` of all i behind each other."""
    ends = lengths.cumsum(0)
    return torch.arange(int(ends[-1]) if len(ends) else 0) + (starts - ends + lengths).repeat_interleave(lengths)


def _shape(x: Tensor) -> tuple[int, ...]:
    return tuple(x.shape)
