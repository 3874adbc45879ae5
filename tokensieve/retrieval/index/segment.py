"""Segment: an immutable file of documents, their encoded tokens, ids and metadata."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokensieve.retrieval.errors import Damaged
from tokensieve.retrieval.index.filters import value_of
from tokensieve.retrieval.index.rows import Rows, ascending, lay_out
from tokensieve.retrieval.storage import Fields
from tokensieve.retrieval.storage.files import Pieces, crc, map_tensors, write_tensors


def write_segment(
    path: Path,
    rows: Mapping[str, tuple[Fields, Tensor]],
    order: Tensor,
    ids: Sequence[str],
    metadata: Sequence[bytes],
    words: Mapping[str, Tensor],
) -> dict[str, Any]:
    """Write one and return its entry in the manifest.

    Args:
        rows: by kind, the fields of vectors behind each other, and how many each document has, ``(N,)``.
        order: ``(D,)``, which of those documents are stored, in the order of their lengths.
        ids, metadata: of the D documents; metadata are JSON objects.
        words: the words of the D documents (see ``lexical``).
    """
    out: dict[str, Pieces] = {}
    for kind, (fields, lengths) in rows.items():
        out |= lay_out(kind, fields, lengths, order)
    names = [i.encode() for i in ids]
    out["id"], out["id_ends"] = _pack(names)
    out["meta"], out["meta_ends"] = _pack(metadata)
    out |= words
    out["key"], out["key_doc"] = torch.from_numpy(_keys(names)).sort(stable=True)
    write_tensors(path, out)
    # Vectors have checksums block by block.
    sums = {k: crc(v) for k, v in out.items() if "." not in k}
    tokens = int(rows["token"][1][order].sum())
    return {"file": path.name, "size": path.stat().st_size, "docs": len(ids), "tokens": tokens, "crc": sums}


class Segment:
    """One segment, memory-mapped; every tensor is checked when it is first used."""

    def __init__(self, folder: Path, entry: Mapping[str, Any]) -> None:
        self.name, self.docs, self._identity = entry["file"], entry["docs"], _identity(entry)
        path = folder / self.name
        if not path.exists() or path.stat().st_size != entry["size"]:
            raise Damaged(f"{path} is missing or not {entry['size']} bytes long")
        self._sums = entry["crc"]
        self._tensors = map_tensors(path)
        self._checked: set[str] = set()
        self._problems: list[str] = []
        self._arrays: dict[str, np.ndarray] = {}
        self._lock = threading.Lock()
        self._columns: dict[str, tuple[list[Any], np.ndarray]] = {}
        kinds = [k.removesuffix(":offsets") for k in self._sums if k.endswith(":offsets")]
        self.rows = {kind: Rows(kind, self.name, self._tensors, self.get, self.docs) for kind in kinds}
        if "token" not in self.rows:
            raise Damaged(f"{path} holds no vectors")

    def is_of(self, entry: Mapping[str, Any]) -> bool:
        """Whether a manifest's entry speaks of this segment, and not of another by its name."""
        return self._identity == _identity(entry)

    def holds(self, name: str) -> bool:
        """Whether it was written with a tensor."""
        return name in self._sums

    def get(self, name: str) -> Tensor:
        """A tensor that is not of vectors."""
        if name not in self._checked:
            if not self._fits(name):
                problem = f"{self.name}: {name} is damaged"
                if problem not in self._problems:
                    self._problems.append(problem)
                raise Damaged(problem)
            self._checked.add(name)
        return self._tensors[name]

    def _fits(self, name: str) -> bool:
        """Whether a tensor is what was written, and no place in it is outside of what it is a place in: checksums do not say who
        wrote them."""
        x = self._tensors.get(name)
        if x is None or crc(x) != self._sums.get(name):
            return False
        if name in ("id_ends", "meta_ends"):
            body = self._tensors.get(name.removesuffix("_ends"), torch.empty(0))
            return ascending(torch.cat([torch.zeros(1).long(), x]), self.docs, len(body))
        if name == "word_ends":
            words, docs = (len(self._tensors.get(n, torch.empty(0))) for n in ("word", "word_docs"))
            return ascending(torch.cat([torch.zeros(1).long(), x]), words, docs)
        if name in ("key_doc", "word_docs"):
            own = self.docs if name == "key_doc" else len(self._tensors.get("word_counts", torch.empty(0)))
            return len(x) == own and bool(((x >= 0) & (x < self.docs)).all())
        if name == "word_lengths":
            return len(x) == self.docs
        return name != "key" or len(x) == self.docs

    @property
    def tokens(self) -> Rows:
        return self.rows["token"]

    @property
    def sketch(self) -> Rows | None:
        return self.rows.get("sketch")

    def damaged(self, alive: Tensor) -> list[str]:
        """What has been found damaged so far, where one of these documents, ``(D,)`` bool, needs it."""
        return [*self._problems, *(b for r in self.rows.values() for b in r.damaged(alive))]

    @property
    def blemished(self) -> bool:
        """Whether any of it has been found damaged, needed or not."""
        return bool(self.damaged(torch.ones(self.docs, dtype=torch.bool)))

    def sound(self, alive: Tensor) -> bool:
        """Whether all that these documents need is what was written; reads everything that no search has read."""
        return self.described() and bool(self.whole(alive.nonzero()[:, 0]).all())

    def whole(self, docs: Tensor) -> Tensor:
        """``(n,)`` bool: which of these documents have all their vectors."""
        out = torch.ones(len(docs), dtype=torch.bool)
        for rows in self.rows.values():
            out &= rows.sound(docs)
        return out

    def described(self) -> bool:
        """Whether all that is not of vectors can be read; words can be counted again, and are no part of it."""
        return self._read([name for name in self._sums if not name.startswith("word")])

    def worded(self) -> bool:
        """Whether it has words, and they can be read."""
        return self.holds("word") and self._read([name for name in self._sums if name.startswith("word")])

    def _read(self, names: Iterable[str]) -> bool:
        try:
            return all(self.get(name) is not None for name in names)
        except Damaged:
            return False

    def has_ids(self) -> bool:
        """Whether the documents' ids can be read."""
        return self._read(("id", "id_ends", "key", "key_doc"))

    def id(self, doc: int) -> str:
        return _slice(self.array("id"), self.array("id_ends"), doc).decode()

    def ids(self, docs: np.ndarray) -> list[str]:
        """The ids of some documents."""
        ends, body = self.array("id_ends"), self.array("id").data
        starts = np.where(docs > 0, ends[docs - 1], 0)
        return [str(body[a:b], "utf-8") for a, b in zip(starts.tolist(), ends[docs].tolist(), strict=True)]

    def metadata_bytes(self, doc: int) -> bytes:
        return _slice(self.array("meta"), self.array("meta_ends"), doc)

    def array(self, name: str) -> np.ndarray:
        """A tensor that is not of vectors, as numpy has it: single elements of that are ten times as fast."""
        if name not in self._arrays:
            self._arrays[name] = self.get(name).numpy()
        return self._arrays[name]

    def metadata(self, doc: int) -> dict[str, Any]:
        """Empty where it is damaged."""
        try:
            held = json.loads(self.metadata_bytes(doc))
        except (Damaged, ValueError):
            return {}
        return held if isinstance(held, dict) else {}

    def find(self, ids: Sequence[str], wanted: np.ndarray) -> Tensor:
        """``(n,)``: the document of each id, whose :func:`keys_of` are ``wanted``; -1 where there is none."""
        keys, places = self.get("key").numpy(), self.get("key_doc")
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
                    value = value_of(self.metadata(doc), name)
                    key = json.dumps(value, sort_keys=True)
                    if key not in place:
                        place[key] = len(values)
                        values.append(value)
                    codes[doc] = place[key]
                self._columns[name] = values, codes
            return self._columns[name]


def _identity(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    return entry["file"], entry["size"], entry["docs"], entry["tokens"], sorted(entry["crc"].items())


def _pack(parts: Sequence[bytes]) -> tuple[Tensor, Tensor]:
    body = torch.frombuffer(bytearray(b"".join(parts)), dtype=torch.uint8) if any(parts) else torch.empty(0).byte()
    return body, torch.tensor([len(p) for p in parts], dtype=torch.long).cumsum(0)


def _slice(body: np.ndarray, ends: np.ndarray, i: int) -> bytes:
    return body[ends[i - 1] if i else 0 : ends[i]].tobytes()


def keys_of(ids: Sequence[str]) -> np.ndarray:
    """``(n,)`` hashes that documents are found by; what no id can be finds nothing."""
    return _keys([i.encode(errors="surrogatepass") for i in ids])


def _keys(names: Sequence[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(hashlib.blake2b(n, digest_size=8).digest() for n in names), "<i8").copy()


def metadata_json(document: int | str, metadata: Mapping[str, Any]) -> bytes:
    """Metadata as a segment stores it."""
    try:
        fields = dict(metadata)
        if not all(isinstance(name, str) for name in fields):
            raise TypeError("names of fields are strings")
        return json.dumps(fields, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError) as problem:
        raise ValueError(f"metadata of document {document} must be a dict of JSON values: {problem}") from problem
