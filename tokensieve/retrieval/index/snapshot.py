"""Snapshot: one committed state of an index, as a reader sees it until it looks again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokensieve.retrieval.errors import Damaged, Incompatible
from tokensieve.retrieval.index.filters import Where, allowed
from tokensieve.retrieval.index.manifest import read_manifest
from tokensieve.retrieval.index.segment import Segment, keys_of
from tokensieve.retrieval.scoring.sketch import Sketch
from tokensieve.retrieval.scoring.sketch import sketch as make_sketch
from tokensieve.retrieval.storage import VectorFormat, vector_format
from tokensieve.retrieval.storage.files import map_tensors, sum_of


@dataclass(frozen=True)
class View:
    """A segment and the documents of it that are alive, ``(D,)`` bool."""

    segment: Segment
    alive: Tensor

    @property
    def readable(self) -> int:
        """How many of its documents are alive and can be found by their ids."""
        return int(self.alive.sum()) if self.segment.has_ids() else 0

    @property
    def damaged(self) -> list[str]:
        """What has been found damaged so far, where a document that is alive needs it."""
        return self.segment.damaged(self.alive)

    def sound(self) -> bool:
        """Whether all that its living documents need is what was written; reads everything that no search has read."""
        return self.segment.sound(self.alive)

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
        """Documents that can be read; those of lost segments are none."""
        return sum(v.readable for v in self.views)

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


def read(folder: Path, before: Snapshot | None = None) -> Snapshot:
    """The last committed state; segments that ``before`` has open, and that are the same to the last checksum, stay open."""
    for _ in range(5):
        manifest = read_manifest(folder)
        known = {v.segment.name: v.segment for v in before.views} if before else {}
        views, lost = [], {}
        for entry in manifest["segments"]:
            try:
                held = known.get(entry["file"])
                # A name may come again in an index that was made anew in this folder.
                segment = held if held is not None and held.is_of(entry) else Segment(folder, entry)
                views.append(View(segment, _alive(folder, entry)))
            except Damaged as problem:
                lost[entry["file"]] = f"{problem} ({entry['docs'] - entry['deleted']} documents)"
        # A writer may have replaced segments between the manifest and its files.
        if not lost or _stands(folder, manifest):
            break
    dim, small = manifest["dim"], manifest["sketch"]
    state = _checked(folder, manifest["codec_state"]) if manifest["codec_state"] else {}
    try:
        codec = vector_format(manifest["codec"], dim, **state)
        made = make_sketch(small, dim) if small else None
    except (TypeError, ValueError, RuntimeError) as problem:
        raise Incompatible(f"{folder} holds vectors that this release cannot read: {problem}") from problem
    for view in views:
        _refuse_other_vectors(view.segment, codec, made)
    return Snapshot(manifest, codec, made, views, lost)


def _refuse_other_vectors(segment: Segment, codec: VectorFormat, sketch: Sketch | None) -> None:
    kinds = {"token": codec} | ({"sketch": sketch_codec(sketch)} if sketch else {})
    for kind, made in kinds.items():
        want = {k: (v.dtype, tuple(v.shape[1:])) for k, v in made.encode(torch.zeros(1, made.dim)).items()}
        found = segment.rows[kind].kinds if kind in segment.rows else {}
        if found != want:
            raise Incompatible(f"{segment.name} holds {kind} vectors of {found}; its index says {want}")


def sketch_codec(sketch: Sketch) -> VectorFormat:
    """How sketches are stored."""
    return vector_format(getattr(sketch, "codec", "int8"), sketch.size)


def _stands(folder: Path, manifest: Mapping[str, Any]) -> bool:
    now = read_manifest(folder)
    return all(now[k] == manifest[k] for k in ("id", "generation"))


def _alive(folder: Path, entry: Mapping[str, Any]) -> Tensor:
    if not entry["dead"]:
        return torch.ones(entry["docs"], dtype=torch.bool)
    dead = _checked(folder, entry["dead"]).get("dead")
    if dead is None or dead.dtype != torch.bool or dead.shape != (entry["docs"],):
        raise Damaged(f"{folder / entry['dead']['file']} does not say which of {entry['docs']} documents are deleted")
    return ~dead


def _checked(folder: Path, entry: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a small file whose checksum the manifest holds."""
    file = folder / entry["file"]
    tensors = map_tensors(file)
    if entry["crc"] != sum_of(tensors):
        raise Damaged(f"{file} is damaged")
    return tensors
