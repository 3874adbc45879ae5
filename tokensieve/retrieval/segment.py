"""Segment: an immutable file of documents, their encoded tokens, ids and metadata."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokensieve.retrieval.errors import Damaged
from tokensieve.retrieval.files import crc, map_tensors, write_tensors
from tokensieve.retrieval.maxsim import runs
from tokensieve.retrieval.ragged import bounds, spread

BLOCK = 4096
"""Tokens checked together: what is lost where a byte is."""
TOKENS = "token."
DOCS = "doc."


def write_segment(
    path: Path, tokens: Mapping[str, Tensor], lengths: Tensor, docs: Mapping[str, Tensor],
    ids: Sequence[str], metadata: Sequence[bytes],
) -> dict[str, Any]:  # fmt: skip
    """Write one, documents in the order of their lengths, and return its entry in the manifest.

    Args:
        tokens: fields of all tokens; lengths: ``(D,)``; docs: tensors with a row for each document.
        metadata: JSON objects.
    """
    order = lengths.argsort(stable=True)
    starts, lengths = bounds(lengths)[:-1][order], lengths[order]
    token = spread(starts, lengths)
    offsets = bounds(lengths)
    out = {TOKENS + k: v[token] for k, v in tokens.items()}
    cuts = offsets.tolist()
    blocks = [0, *(last for _, last in runs(cuts, BLOCK))]
    out["sums"] = torch.tensor(
        [[crc(v[cuts[a] : cuts[b]]) for k, v in sorted(out.items())] for a, b in pairwise(blocks)]
    )
    out |= {DOCS + k: v[order] for k, v in docs.items()} | {"offsets": offsets, "blocks": torch.tensor(blocks)}
    names = [ids[i].encode() for i in order.tolist()]
    out["id"], out["id_ends"] = _pack(names)
    out["meta"], out["meta_ends"] = _pack([metadata[i] for i in order.tolist()])
    keys = torch.tensor([_key(n) for n in names])
    out["key"], out["key_doc"] = keys.sort(stable=True)
    write_tensors(path, out)
    sums = {k: crc(v) for k, v in out.items() if not k.startswith(TOKENS)}
    return {"file": path.name, "size": path.stat().st_size, "docs": len(ids), "tokens": cuts[-1], "crc": sums}


class Segment:
    """One segment, memory-mapped; every tensor is checked when it is first used, tokens block by block."""

    def __init__(self, folder: Path, entry: Mapping[str, Any]) -> None:
        self.name, self.docs, self.tokens = entry["file"], entry["docs"], entry["tokens"]
        path = folder / self.name
        if not path.exists() or path.stat().st_size != entry["size"]:
            raise Damaged(f"{path} is missing or not {entry['size']} bytes long")
        self._sums = entry["crc"]
        self._tensors = map_tensors(path)
        self._checked: set[str] = set()
        self._lock = threading.Lock()
        self._columns: dict[str, tuple[list[Any], np.ndarray]] = {}
        self.fields = sorted(k for k in self._tensors if k.startswith(TOKENS))
        self.offsets, blocks, sums = self.get("offsets"), self.get("blocks"), self.get("sums")
        self.blocks = blocks.tolist()
        self._block_sums = sums
        self._sound = torch.zeros(len(sums), dtype=torch.int8)
        """0 not looked at, 1 sound, -1 damaged."""

    def get(self, name: str) -> Tensor:
        """A tensor that is not of tokens."""
        if name not in self._checked:
            if name not in self._tensors or crc(self._tensors[name]) != self._sums.get(name):
                raise Damaged(f"segment {self.name}: {name} is damaged")
            self._checked.add(name)
        return self._tensors[name]

    def doc(self, name: str) -> Tensor | None:
        """A tensor with a row for each document, None where the segment has none of that name."""
        return self.get(DOCS + name) if DOCS + name in self._tensors else None

    @property
    def doc_names(self) -> list[str]:
        return [k.removeprefix(DOCS) for k in self._tensors if k.startswith(DOCS)]

    def sound(self, docs: Tensor | None = None) -> Tensor:
        """``(D,)`` bool: documents whose block, checked now if never before, is what was written; of all, or of some."""
        block = torch.bucketize(
            torch.arange(self.docs) if docs is None else docs, torch.tensor(self.blocks[1:]), right=True
        )
        for i in block.unique().tolist():
            if self._sound[i] == 0:
                rows = slice(int(self.offsets[self.blocks[i]]), int(self.offsets[self.blocks[i + 1]]))
                sums = [crc(self._tensors[k][rows]) for k in self.fields]
                self._sound[i] = 1 if sums == self._block_sums[i].tolist() else -1
        return self._sound[block] == 1

    @property
    def damaged(self) -> list[str]:
        """Names of the blocks found damaged so far."""
        return [
            f"{self.name} block {i} (documents {self.blocks[i]} to {self.blocks[i + 1] - 1})"
            for i in (self._sound < 0).nonzero()[:, 0].tolist()
        ]

    def rows(self, docs: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The token fields of some documents behind each other, without a copy where they are neighbours, and offsets."""
        lengths = self.offsets.diff()[docs]
        if len(docs) and int(docs[-1]) - int(docs[0]) == len(docs) - 1:
            pick: Any = slice(int(self.offsets[docs[0]]), int(self.offsets[docs[-1] + 1]))
        else:
            pick = spread(self.offsets[docs], lengths)
        return {k.removeprefix(TOKENS): self._tensors[k][pick] for k in self.fields}, bounds(lengths)

    def id(self, doc: int) -> str:
        return _slice(self.get("id"), self.get("id_ends"), doc).decode()

    def metadata_bytes(self, doc: int) -> bytes:
        return _slice(self.get("meta"), self.get("meta_ends"), doc)

    def metadata(self, doc: int) -> dict[str, Any]:
        return json.loads(self.metadata_bytes(doc))

    def find(self, ids: Sequence[str]) -> Tensor:
        """``(n,)``: the document of each id, -1 where there is none."""
        keys, places = self.get("key").numpy(), self.get("key_doc")
        wanted = np.array([_key(i.encode()) for i in ids], dtype=np.int64)
        out = torch.full((len(ids),), -1)
        low, high = np.searchsorted(keys, wanted, "left"), np.searchsorted(keys, wanted, "right")
        for i in np.flatnonzero(low < high).tolist():
            for doc in places[low[i] : high[i]].tolist():
                if self.id(doc) == ids[i]:
                    out[i] = doc
        return out

    def column(self, name: str) -> tuple[list[Any], np.ndarray]:
        """The distinct values of a metadata field, absent ones as None, and ``(D,)`` the one of each document."""
        with self._lock:
            if name not in self._columns:
                place: dict[str, int] = {}
                values: list[Any] = []
                codes = np.empty(self.docs, np.int32)
                for doc in range(self.docs):
                    value = self.metadata(doc).get(name)
                    key = json.dumps(value, sort_keys=True)
                    if key not in place:
                        place[key] = len(values)
                        values.append(value)
                    codes[doc] = place[key]
                self._columns[name] = values, codes
            return self._columns[name]


def _pack(parts: Sequence[bytes]) -> tuple[Tensor, Tensor]:
    body = torch.frombuffer(bytearray(b"".join(parts)), dtype=torch.uint8) if any(parts) else torch.empty(0).byte()
    return body, torch.tensor([len(p) for p in parts], dtype=torch.long).cumsum(0)


def _slice(body: Tensor, ends: Tensor, i: int) -> bytes:
    return body[int(ends[i - 1]) if i else 0 : int(ends[i])].numpy().tobytes()


def _key(name: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little", signed=True)
