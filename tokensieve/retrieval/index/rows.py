"""Rows: the encoded vectors of a segment's documents, checked block by block when they are first used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

import torch
from torch import Tensor

from tokensieve.retrieval.errors import Damaged
from tokensieve.retrieval.scoring.maxsim import runs
from tokensieve.retrieval.scoring.ragged import bounds, spread
from tokensieve.retrieval.storage import Fields
from tokensieve.retrieval.storage.files import Pieces, crc

BLOCK = 4096
"""Vectors checked together: what is lost where a byte is."""


def lay_out(kind: str, fields: Fields, lengths: Tensor, order: Tensor) -> dict[str, Pieces]:
    """The tensors of one kind of rows: of the documents named by ``order``, behind each other; vectors block by block, so that
    what is copied is still in the caches when it is summed up."""
    starts, lengths = bounds(lengths)[:-1][order], lengths[order]
    place, offsets = spread(starts, lengths), bounds(lengths)
    cuts = offsets.tolist()
    blocks = [0, *(last for _, last in runs(cuts, BLOCK))]
    parts: dict[str, list[Tensor]] = {k: [] for k in sorted(fields)}
    sums = []
    for a, b in pairwise(blocks):
        some = place[cuts[a] : cuts[b]]
        for k, held in parts.items():
            held.append(fields[k].index_select(0, some))
        sums.append([crc(held[-1]) for held in parts.values()])
    out: dict[str, Pieces] = {f"{kind}.{k}": held for k, held in parts.items()}
    about = {"offsets": offsets, "blocks": torch.tensor(blocks), "sums": torch.tensor(sums)}
    return out | {f"{kind}:{k}": v for k, v in about.items()}


class Rows:
    """Vectors of one kind ("token", "sketch")."""

    def __init__(
        self, kind: str, segment: str, tensors: Mapping[str, Tensor], get: Callable[[str], Tensor], documents: int
    ) -> None:
        self._segment = segment
        self.fields = {k.removeprefix(kind + "."): v for k, v in sorted(tensors.items()) if k.startswith(kind + ".")}
        self.offsets, blocks, self._sums = (get(f"{kind}:{name}") for name in ("offsets", "blocks", "sums"))
        self._kind, self._blocks, self._ends = kind, blocks.tolist(), blocks[1:].contiguous()
        self._seen = torch.zeros(len(self._sums), dtype=torch.int8)
        """0 not looked at, 1 sound, -1 damaged."""
        vectors = {len(v) for v in self.fields.values()}
        if len(vectors) != 1 or not (
            ascending(self.offsets, documents, next(iter(vectors)))
            and ascending(blocks, len(self._sums), documents)
            and self._sums.shape == (len(self._ends), len(self.fields))
        ):
            raise Damaged(f"{segment}: its {kind} vectors are not those of {documents} documents")

    @property
    def lengths(self) -> Tensor:
        return self.offsets.diff()

    @property
    def nbytes(self) -> int:
        return sum(v.nbytes for v in self.fields.values())

    def bytes_of(self, alive: Tensor) -> int:
        """Bytes of some documents' vectors, ``(D,)`` bool; all vectors are of one size."""
        every = int(self.offsets[-1])
        return self.nbytes // every * int(self.lengths[alive].sum()) if every else 0

    def sound(self, docs: Tensor) -> Tensor:
        """``(n,)`` bool: which of these documents lie in blocks that are what was written."""
        block = torch.bucketize(docs, self._ends, right=True)
        if not bool((self._seen == 1).all()):
            for i in block.unique().tolist():
                if self._seen[i] == 0:
                    rows = slice(int(self.offsets[self._blocks[i]]), int(self.offsets[self._blocks[i + 1]]))
                    self._seen[i] = 1 if [crc(v[rows]) for v in self.fields.values()] == self._sums[i].tolist() else -1
        return self._seen[block] == 1

    def take(self, docs: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The fields of some documents behind each other, without a copy where they are neighbours, and offsets."""
        lengths = self.offsets[docs + 1] - self.offsets[docs]
        if len(docs) and int(docs[-1]) - int(docs[0]) == len(docs) - 1:
            some = slice(int(self.offsets[docs[0]]), int(self.offsets[docs[-1] + 1]))
            return {k: v[some] for k, v in self.fields.items()}, bounds(lengths)
        place = spread(self.offsets[docs], lengths)
        # Rows are copied whole; v[place] copies element by element, and takes nine times as long for bytes.
        return {k: v.index_select(0, place) for k, v in self.fields.items()}, bounds(lengths)

    def damaged(self, alive: Tensor) -> list[str]:
        """The blocks found damaged so far that hold vectors of these documents, ``(D,)`` bool."""
        found = [(i, self._blocks[i], self._blocks[i + 1]) for i in (self._seen < 0).nonzero()[:, 0].tolist()]
        return [
            f"{self._segment}: {self._kind} block {i} (documents {a} to {b - 1})"
            for i, a, b in found
            if bool(alive[a:b].any())
        ]

    @property
    def kinds(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Of each field, the dtype and the shape of one vector."""
        return {k: (v.dtype, tuple(v.shape[1:])) for k, v in self.fields.items()}


def ascending(offsets: Tensor, count: int, end: int) -> bool:
    """Whether these are ``count`` neighbouring stretches from 0 to ``end``."""
    good = offsets.dtype == torch.long and offsets.shape == (count + 1,)
    return good and int(offsets[0]) == 0 and int(offsets[-1]) == end and bool((offsets.diff() >= 0).all())
