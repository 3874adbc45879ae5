"""Snapshot: one committed state of an index, as a reader sees it until it looks again."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokensieve.retrieval.errors import Damaged, Incompatible
from tokensieve.retrieval.index.filters import Where, allowed
from tokensieve.retrieval.index.segment import Segment, keys_of
from tokensieve.retrieval.scoring.sketch import Sketch
from tokensieve.retrieval.scoring.sketch import sketch as make_sketch
from tokensieve.retrieval.storage import VectorFormat, vector_format
from tokensieve.retrieval.storage.files import map_tensors, read_json, sum_of, write_json, write_small

MANIFEST = "manifest.json"
FORMAT = "tokensieve-index"
VERSION = 1
LOCK = "lock"
OWN = re.compile(r"(\d{6,}\.(safetensors|dead|codec)(\.part)?|" + LOCK + ")")
"""Files of an index besides its manifest."""


@dataclass(frozen=True)
class View:
    """A segment and the documents of it that are alive, ``(D,)`` bool."""

    segment: Segment
    alive: Tensor

    def admitted(self, where: Where | None) -> Tensor:
        """``(D,)`` bool: documents that are alive and meet the conditions."""
        if not self.segment.has_ids():
            return torch.zeros_like(self.alive)
        if where is None:
            return self.alive
        return self.alive & torch.from_numpy(allowed(where, self.segment.column, self.segment.docs))


@dataclass(frozen=True)
class Snapshot:
    """The manifest, what it names, and the segments that it names but that cannot be read."""

    manifest: Mapping[str, Any]
    codec: VectorFormat
    sketch: Sketch | None
    views: Sequence[View]
    lost: Mapping[str, str]

    @property
    def generation(self) -> int:
        return self.manifest["generation"]

    def __len__(self) -> int:
        return sum(s["docs"] - s["deleted"] for s in self.manifest["segments"])

    def size(self) -> dict[str, int]:
        """``documents`` and ``vectors``; ``vector_bytes`` and ``sketch_bytes``; ``bytes`` on disk, with ids, metadata, and what
        was deleted but not yet written anew."""
        held = [(v.segment.rows, v.alive) for v in self.views]
        return {
            "documents": len(self),
            "vectors": sum(int(rows["token"].lengths[alive].sum()) for rows, alive in held),
            "vector_bytes": sum(rows["token"].bytes_of(alive) for rows, alive in held),
            "sketch_bytes": sum(rows["sketch"].bytes_of(alive) for rows, alive in held if "sketch" in rows),
            "bytes": sum(s["size"] for s in self.manifest["segments"]),
        }

    def find(self, ids: Sequence[str]) -> list[tuple[int, int] | None]:
        """For each id, the view and the document in it, None where there is none."""
        out: list[tuple[int, int] | None] = [None] * len(ids)
        if not ids:
            return out
        keys = keys_of(ids)
        for v, view in enumerate(self.views):
            for i, doc in enumerate(view.segment.find(ids, keys).tolist() if view.segment.has_ids() else []):
                if doc >= 0 and bool(view.alive[doc]):
                    out[i] = v, doc
        return out


def vacant(folder: Path, allowed: Collection[str] = ()) -> Path:
    """A folder for a new index, made where there is none; what another process was killed in the middle of making may be in it.

    Raises:
        FileExistsError: there is an index, or something else.
    """
    if (folder / MANIFEST).exists():
        raise FileExistsError(f"there is an index in {folder} already; open it, or choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    names = {p.name for p in folder.iterdir()}
    other = sorted(n for n in names if n.removesuffix(".part") not in {MANIFEST, *allowed} and not OWN.fullmatch(n))
    if other:
        raise FileExistsError(f"{folder} holds other things ({other[0]}); choose a folder that is new or empty")
    return folder


def start(folder: Path, fitted: Mapping[str, Tensor] | None, **made: Any) -> None:
    """Commit the state of an index that holds nothing."""
    state = write_small(folder / "000000.codec", fitted) if fitted else None
    empty: dict[str, Any] = {"segments": [], "plan": None, "next_file": 0, "next_id": 0}
    head = {"format": FORMAT, "version": VERSION, "generation": 0, "codec_state": state}
    write_json(folder / MANIFEST, {**head, **made, **empty})


def read(folder: Path, before: Snapshot | None = None) -> Snapshot:
    """The last committed state; segments that ``before`` has open stay open."""
    for _ in range(5):
        manifest = read_manifest(folder)
        known = {v.segment.name: v.segment for v in before.views} if before else {}
        views, lost = [], {}
        for entry in manifest["segments"]:
            try:
                segment = known.get(entry["file"]) or Segment(folder, entry)
                views.append(View(segment, _alive(folder, entry)))
            except Damaged as problem:
                lost[entry["file"]] = str(problem)
        # A writer may have replaced segments between the manifest and its files.
        if not lost or read_manifest(folder)["generation"] == manifest["generation"]:
            break
    state = _checked(folder, **manifest["codec_state"]) if manifest["codec_state"] else {}
    dim, small = manifest["dim"], manifest["sketch"]
    made = make_sketch(small, dim) if small else None
    return Snapshot(manifest, vector_format(manifest["codec"], dim, **state), made, views, lost)


def read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.exists():
        raise FileNotFoundError(f"there is no index in {folder}; Index.create makes one")
    manifest = read_json(path)
    if manifest.get("format") != FORMAT or manifest.get("version") != VERSION:
        raise Incompatible(
            f"{folder} holds {manifest.get('format')!r} of version {manifest.get('version')}; this release reads "
            f"version {VERSION}: build it anew, or use the release that wrote it"
        )
    return manifest


def _alive(folder: Path, entry: Mapping[str, Any]) -> Tensor:
    if not entry["dead"]:
        return torch.ones(entry["docs"], dtype=torch.bool)
    return ~_checked(folder, **entry["dead"])["dead"]


def _checked(folder: Path, file: str, crc: int) -> dict[str, Tensor]:
    """The tensors of a small file whose checksum the manifest holds."""
    tensors = map_tensors(folder / file)
    if crc != sum_of(tensors):
        raise Damaged(f"{folder / file} is damaged")
    return tensors
