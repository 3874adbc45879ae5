"""Writer: commits to the folder of an index. Segments are written first; a commit is the renaming of the manifest."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from tokensieve.retrieval.errors import Locked
from tokensieve.retrieval.index import snapshot
from tokensieve.retrieval.index.search import sketch_codec
from tokensieve.retrieval.index.segment import write_segment
from tokensieve.retrieval.index.snapshot import LOCK, MANIFEST, OWN, Snapshot, View
from tokensieve.retrieval.scoring.maxsim import runs
from tokensieve.retrieval.scoring.ragged import Ragged, bounds
from tokensieve.retrieval.storage import VectorFormat
from tokensieve.retrieval.storage.files import write_json, write_small

SEGMENT = 1 << 17
"""Tokens of a segment: what a build holds in memory."""
TIER = 8
"""Segments of one size that are merged into one."""
SAMPLE = 1 << 16
ENCODED = 1 << 14


class Writer:
    """The only writer of a folder, until closed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = FileLock(folder / LOCK, thread_local=False)
        try:
            self._lock.acquire(timeout=0)
        except Timeout as problem:
            raise Locked(f"{folder} is being written by another process or Index; close that one first") from problem
        self.state = snapshot.read(folder)
        self._sweep()

    def close(self) -> None:
        self._lock.release()

    def change(
        self, docs: Ragged, ids: Sequence[str], metadata: Sequence[bytes], gone: Sequence[str], **more: Any
    ) -> Snapshot:
        """One commit: delete ``gone``, add documents, whose ids must then be free."""
        manifest = {**self.state.manifest, **more}
        segments = {s["file"]: dict(s) for s in manifest["segments"]}
        number = manifest["next_file"]
        for name, dead in self._dead(gone).items():
            number += 1
            segments[name] |= {
                "dead": write_small(self.folder / f"{number:06d}.dead", {"dead": dead}),
                "deleted": int(dead.sum()),
            }
        codec = self.state.codec
        if len(docs):
            if manifest["codec_state"] is None:
                codec = codec.fit(_sample(docs.tokens))
                if codec.state:
                    number += 1
                    manifest["codec_state"] = write_small(self.folder / f"{number:06d}.codec", codec.state)
            cuts = docs.offsets.tolist()
            for first, last in runs(cuts, SEGMENT):
                number += 1
                part = Ragged(docs.tokens[cuts[first] : cuts[last]], docs.offsets[first : last + 1] - cuts[first])
                entry = self._write(number, codec, part, ids[first:last], metadata[first:last])
                segments[entry["file"]] = entry
        segments = {k: s for k, s in segments.items() if s["deleted"] < s["docs"]}
        manifest |= {"segments": list(segments.values()), "next_file": number}
        self._commit(manifest)
        # What was asked is done; a merge that finds no room is tried again after the next commit.
        with suppress(OSError):
            self._merge()
        return self.state

    def compact(self) -> Snapshot:
        """Rewrite segments so that they are full and hold no deleted documents; damaged ones stay as they are."""
        whole = [v for v in self.state.views if v.segment.sound()]
        sizes = [int(v.segment.tokens.lengths[v.alive].sum()) for v in whole]
        for first, last in runs(bounds(sizes).tolist(), SEGMENT):
            if last - first > 1 or not bool(whole[first].alive.all()):
                self._join(whole[first:last])
        return self.state

    def _write(
        self, number: int, codec: VectorFormat, docs: Ragged, ids: Sequence[str], metadata: Sequence[bytes]
    ) -> dict[str, Any]:
        rows = {"token": (_encode(codec, docs.tokens), docs.lengths)}
        if self.state.sketch:
            small = self.state.sketch.documents(docs)
            rows["sketch"] = _encode(sketch_codec(self.state.sketch), small.tokens), small.lengths
        return self._save(number, rows, ids, metadata)

    def _save(self, number: int, rows: Any, ids: Sequence[str], metadata: Sequence[bytes]) -> dict[str, Any]:
        path = self.folder / f"{number:06d}.safetensors"
        return write_segment(path, rows, ids, metadata) | {"dead": None, "deleted": 0}

    def _dead(self, gone: Sequence[str]) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        for place in self.state.find(gone):
            if place is not None:
                view = self.state.views[place[0]]
                out.setdefault(view.segment.name, ~view.alive)[place[1]] = True
        return out

    def _merge(self) -> None:
        """Join segments of about one size where there are many, so that a search opens few."""
        tiers: dict[int, list[View]] = {}
        for view in self.state.views:
            tokens = int(view.segment.tokens.lengths[view.alive].sum())
            if tokens <= SEGMENT // TIER:
                tiers.setdefault(tokens.bit_length() // 3, []).append(view)
        for views in tiers.values():
            if len(views) >= TIER and all(v.segment.sound() for v in views):
                self._join(views)

    def _join(self, views: Sequence[View]) -> None:
        number = self.state.manifest["next_file"] + 1
        held = [(v.segment, v.alive.nonzero()[:, 0]) for v in views]
        rows = {}
        for kind in views[0].segment.rows:
            parts = [s.rows[kind].take(docs) for s, docs in held]
            fields = {k: torch.cat([f[k] for f, _ in parts]) for k in parts[0][0]}
            rows[kind] = fields, torch.cat([offsets.diff() for _, offsets in parts])
        ids = [s.id(d) for s, docs in held for d in docs.tolist()]
        metadata = [s.metadata_bytes(d) for s, docs in held for d in docs.tolist()]
        entry = self._save(number, rows, ids, metadata)
        names = {v.segment.name for v in views}
        kept = [s for s in self.state.manifest["segments"] if s["file"] not in names]
        self._commit({**self.state.manifest, "segments": [*kept, entry], "next_file": number})

    def _commit(self, manifest: dict[str, Any]) -> None:
        write_json(self.folder / MANIFEST, manifest | {"generation": manifest["generation"] + 1})
        self.state = snapshot.read(self.folder, self.state)
        self._sweep()

    def _sweep(self) -> None:
        """Remove files that no manifest names: replaced ones, and those of a writer that died."""
        entries = self.state.manifest["segments"]
        small = [self.state.manifest["codec_state"], *(s["dead"] for s in entries)]
        named = {s["file"] for s in entries} | {s["file"] for s in small if s}
        for path in self.folder.iterdir():
            if path.name not in {*named, LOCK} and (OWN.fullmatch(path.name) or path.name == f"{MANIFEST}.part"):
                with suppress(OSError):
                    path.unlink()


def _encode(codec: VectorFormat, x: Tensor) -> dict[str, Tensor]:
    parts = [codec.encode(part) for part in x.split(ENCODED)]
    return {k: torch.cat([p[k] for p in parts]) for k in parts[0]}


def _sample(x: Tensor) -> Tensor:
    return x[:: -(-len(x) // SAMPLE)]
