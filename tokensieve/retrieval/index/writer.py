"""Writer: commits to the folder of an index. Segments are written first; a commit is the renaming of the manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokensieve.retrieval.index import snapshot
from tokensieve.retrieval.index.lexical import TERMS, joined, lexical
from tokensieve.retrieval.index.manifest import (
    LOCK,
    MANIFEST,
    OWN,
    VERSION,
    fresh_id,
    locked,
    next_file,
    refuse_replaced,
)
from tokensieve.retrieval.index.marks import of_file
from tokensieve.retrieval.index.segment import write_segment
from tokensieve.retrieval.index.snapshot import Snapshot, View, sketch_codec
from tokensieve.retrieval.scoring.maxsim import runs
from tokensieve.retrieval.scoring.ragged import Ragged, bounds
from tokensieve.retrieval.storage import Fields, VectorFormat
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
        self._lock = locked(folder)
        try:
            self.state = snapshot.read(folder)
        except BaseException:
            self._lock.release()
            raise
        self._sweep()

    def close(self) -> None:
        self._lock.release()

    def change(
        self, docs: Ragged, ids: Sequence[str], metadata: Sequence[bytes], gone: Sequence[str], **more: Any
    ) -> Snapshot:
        """One commit: delete ``gone``, add documents, whose ids must then be free."""
        manifest = {**self.state.manifest, **more}
        segments = {s["file"]: dict(s) for s in manifest["segments"]}
        number = next_file(manifest)
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

    def compact(self, forget: bool = False) -> Snapshot:
        """Rewrite segments so that they are full and hold no deleted documents; damaged ones stay as they are, but where
        ``forget`` lets go of those whose documents cannot be found."""
        if forget:
            self._forget({*self.state.lost, *(v.segment.name for v in self.state.views if not v.segment.has_ids())})
        whole = [v for v in self.state.views if v.sound()]
        sizes = [int(v.segment.tokens.lengths[v.alive].sum()) for v in whole]
        for first, last in runs(bounds(sizes).tolist(), SEGMENT):
            segment = whole[first].segment
            if last - first > 1 or not bool(whole[first].alive.all()) or segment.blemished or not segment.holds(TERMS):
                self._join(whole[first:last])
        return self.state

    def mend(self) -> Snapshot:
        """Once every file is in the index again: let go of segments that held nothing else and cannot be read, and write anew
        those of which a damaged part is needed no more, and those of an earlier format."""
        entries = {s["file"]: s for s in self.state.manifest["segments"]}
        closed = {*self.state.lost, *(v.segment.name for v in self.state.views if not v.segment.described())}
        self._forget({name for name in closed if entries[name].get("others") == 0})
        for view in self.state.views:
            # Those of the first format do not know their words.
            if view.sound() and (not view.segment.worded() or view.segment.blemished):
                self._join([view])
        return self.state

    def _forget(self, names: set[str]) -> None:
        kept = [s for s in self.state.manifest["segments"] if s["file"] not in names]
        if len(kept) < len(self.state.manifest["segments"]):
            self._commit({**self.state.manifest, "segments": kept})

    def _write(
        self, number: int, codec: VectorFormat, docs: Ragged, ids: Sequence[str], metadata: Sequence[bytes]
    ) -> dict[str, Any]:
        rows = {"token": (_encode(codec, docs.tokens), docs.lengths)}
        if self.state.sketch:
            small = self.state.sketch.documents(docs)
            rows["sketch"] = _encode(sketch_codec(self.state.sketch), small.tokens), small.lengths
        order = docs.lengths.argsort(stable=True)
        names, notes = ([every[i] for i in order.tolist()] for every in (ids, metadata))
        return self._save(number, rows, order, names, notes, lexical(notes))

    def _save(
        self, number: int, rows: Any, order: Tensor, ids: Sequence[str], metadata: Sequence[bytes], words: Mapping[str, Tensor]
    ) -> dict[str, Any]:  # fmt: skip
        path = self.folder / f"{number:06d}.safetensors"
        others = sum(not of_file(m) for m in metadata)
        return write_segment(path, rows, order, ids, metadata, words) | {"dead": None, "deleted": 0, "others": others}

    def _dead(self, gone: Sequence[str]) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        for place in self.state.find(gone):
            if place is not None:
                view = self.state.views[place[0]]
                out.setdefault(view.segment.name, ~view.alive)[place[1]] = True
        return out

    def _merge(self) -> None:
        """Write segments anew of which half is deleted, and join those of about one size where there are many, so that a search
        opens few."""
        tiers: dict[int, list[View]] = {}
        for view in self.state.views:
            lengths = view.segment.tokens.lengths
            tokens = int(lengths[view.alive].sum())
            if 2 * tokens <= int(lengths.sum()) and view.sound():
                self._join([view])
                continue
            if tokens <= SEGMENT // TIER:
                tiers.setdefault(tokens.bit_length() // 3, []).append(view)
        for views in tiers.values():
            if len(views) >= TIER and all(v.sound() for v in views):
                self._join(views)

    def _join(self, views: Sequence[View]) -> None:
        number = next_file(self.state.manifest) + 1
        held = [(v.segment, v.alive.nonzero()[:, 0]) for v in views]
        rows: dict[str, tuple[Fields, Tensor]]
        every = [(segment, doc) for segment, docs in held for doc in docs.tolist()]
        if len(held) == 1:
            # Its documents are in the order of their lengths: those that stay are copied from where they lie.
            segment, order = held[0]
            rows = {kind: (own.fields, own.lengths) for kind, own in segment.rows.items()}
            rank = torch.arange(len(order))
        else:
            kinds = held[0][0].rows
            rows = {kind: _behind([segment.rows[kind].take(docs) for segment, docs in held]) for kind in kinds}
            order = rank = rows["token"][1].argsort(stable=True)
        kept = [every[i] for i in rank.tolist()]
        metadata = [segment.metadata_bytes(doc) for segment, doc in kept]
        words = joined(held, rank) or lexical(metadata)
        entry = self._save(number, rows, order, [segment.id(doc) for segment, doc in kept], metadata, words)
        names = {v.segment.name for v in views}
        kept = [s for s in self.state.manifest["segments"] if s["file"] not in names]
        self._commit({**self.state.manifest, "segments": [*kept, entry], "next_file": number})

    def _commit(self, manifest: dict[str, Any]) -> None:
        refuse_replaced(self.folder, self.state.manifest)
        head = {"version": VERSION, "id": manifest["id"] or fresh_id(), "generation": manifest["generation"] + 1}
        write_json(self.folder / MANIFEST, manifest | head)
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


def _behind(parts: Sequence[tuple[Fields, Tensor]]) -> tuple[Fields, Tensor]:
    """The fields of several segments' documents behind each other, and the documents' lengths, from their offsets."""
    fields = {k: torch.cat([part[k] for part, _ in parts]) for k in parts[0][0]}
    return fields, torch.cat([offsets.diff() for _, offsets in parts])


def _encode(codec: VectorFormat, x: Tensor) -> dict[str, Tensor]:
    parts = [codec.encode(part) for part in x.split(ENCODED)]
    return {k: torch.cat([p[k] for p in parts]) for k in parts[0]}


def _sample(x: Tensor) -> Tensor:
    return x[:: -(-len(x) // SAMPLE)]
