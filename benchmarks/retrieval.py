"""One page for all methods of stored vectors: retrieval of real text by fewer vectors and in fewer bytes.

`python -m benchmarks.retrieval` measures what `out/retrieval.json` does not hold yet and writes docs/retrieval-leaderboard.md and
its plot. Queries are first lines of docstrings, passages what follows them (`tokensieve.retrieval.docstrings`).
"""

from __future__ import annotations

import json
import sys
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

import tokensieve as ts
from benchmarks.retrieval_page import write
from tokensieve.bench.results import environment
from tokensieve.codec import CODECS, codec
from tokensieve.retrieval import evaluate
from tokensieve.retrieval.docstrings import Collection, collect
from tokensieve.retrieval.encode import Encoded, Encoder, load
from tokensieve.retrieval.reduce import Frequencies, reduce

FORMAT = "tokensieve.retrieval.1"
CACHE = Path("out/encoded")
QUERIES = 1000
BUDGETS = (0.7, 0.5, 0.33, 0.25, 0.1)
SEEDS = (0, 1, 2)
DRAWS = ("random",)
EXACT = "float32"
POOLED = (("agglomerative", 0.5), ("agglomerative", 0.33))
"""What is stored by every codec beside all vectors."""


class Bed:
    """The collection and its encoded halves, cached in ``out/``.

    Args:
        passages: the first so many of the collection; None for all.
        queries: the first so many held-out queries of those passages.
    """

    def __init__(self, passages: int | None = None, queries: int = QUERIES, held_out: bool = True):
        self.encoder: Encoder = load()
        whole = collect()
        self.collection = Collection(whole.passages[:passages], whole.sources)
        texts, places = self.collection.queries(held_out)
        self.texts, self.relevant = texts[:queries], places[:queries]
        self._whole, self._held_out = whole, held_out

    @cached_property
    def documents(self) -> Encoded:
        """All passages, with every signal that methods read."""
        encoded = self._cached("passages", self._whole.bodies).rows(range(len(self.collection.passages)))
        return Frequencies().add(encoded).mark(encoded)

    @cached_property
    def queries(self) -> Encoded:
        texts, _ = self._whole.queries(self._held_out)
        every = self._cached("held-out" if self._held_out else "tuning", texts)
        return every.rows([texts.index(t) for t in self.texts])

    def _cached(self, what: str, texts: list[str]) -> Encoded:
        name = f"{what}-{self._whole.digest[:12]}-{self.encoder.identity.digest[:12]}.safetensors"
        if (CACHE / name).exists():
            return Encoded.load(CACHE / name)
        CACHE.mkdir(parents=True, exist_ok=True)
        stored = what == "passages"
        made = self.encoder.documents(texts, ["received_attention"]) if stored else self.encoder.queries(texts)
        made.save(CACHE / name)
        return made

    def ranks(self, documents: Encoded) -> np.ndarray:
        """The place of each query's passage by MaxSim."""
        return evaluate.ranks(evaluate.late_interaction(self.queries, documents), self.relevant)

    def reduced(self, name: str, keep: float, seed: int = 0, **options: Any) -> Encoded:
        return reduce(self.documents, ts.make(name, **options), keep, seed=seed)

    def stored(self, documents: Encoded, name: str) -> tuple[Encoded, int]:
        """The passages as a codec gives them back, and the bytes of a vector."""
        made = codec(name, documents.vectors.shape[1])
        # A sample spread over the collection: what a codec learns must not depend on its order.
        step = max(len(documents.vectors) // 2**15, 1)
        made = made.fit(documents.vectors[::step])
        back = torch.cat([made.decode(made.encode(part)) for part in documents.vectors.split(2**15)])
        return Encoded(back, documents.offsets, documents.spans), made.bytes_per_token


def measure(file: Path) -> dict[str, Any]:
    """All cells, resumed from ``file``, which is complete after each (written to a temporary name first, then renamed).

    Raises:
        ValueError: the file holds the results of another collection or encoder.
    """
    bed = Bed()
    of = {"collection": bed.collection.digest, "encoder": bed.encoder.identity.digest, "queries": len(bed.texts)}
    lengths = bed.documents.lengths
    facts = {
        "sources": bed.collection.sources, "passages": len(lengths), "vectors": int(lengths.sum()),
        "longest": int(lengths.max()), "dim": bed.encoder.identity.dim,
    }  # fmt: skip
    data: dict[str, Any] = {"format": FORMAT, **of, **facts, **environment(), "cells": {}}
    if file.exists():
        data = json.loads(file.read_text())
        if any(data.get(k) != v for k, v in of.items()):
            raise ValueError(f"{file} holds results of another collection or encoder; delete it, or name another file")
    for key, run in track(cells(bed), description="retrieval", console=Console(stderr=True)):
        if key in data["cells"]:
            continue
        ranks, vectors, size = run()
        data["cells"][key] = {"ranks": ranks.tolist(), "vectors": vectors, "bytes": size}
        part = file.with_suffix(".part")
        part.write_text(json.dumps(data) + "\n", encoding="utf-8")
        part.replace(file)
    return data


def cells(bed: Bed) -> list[tuple[str, Any]]:
    """What is measured: a key, and what gives the ranks, the vectors of all passages and the bytes of one."""
    width = 2 * bed.encoder.identity.dim  # as float16, in which nothing is lost that shows
    docs = len(bed.collection.passages)

    def single() -> Any:
        return evaluate.ranks(evaluate.single_vector(bed.queries, bed.documents), bed.relevant), docs, width

    def bm25() -> Any:
        return evaluate.ranks(evaluate.bm25(bed.texts, bed.collection.bodies), bed.relevant), 0, 0

    def full() -> Any:
        return bed.ranks(bed.documents), len(bed.documents.vectors), width

    def fewer(name: str, keep: float, seed: int) -> Any:
        kept = bed.reduced(name, keep, seed)
        return bed.ranks(kept), len(kept.vectors), width

    def coded(how: str, name: str, keep: float) -> Any:
        kept = bed.documents if name == "full" else bed.reduced(name, keep)
        back, size = bed.stored(kept, how)
        return bed.ranks(back), len(back.vectors), size

    out: list[tuple[str, Any]] = [("bm25", bm25), ("single", single), ("full", full)]
    for keep in BUDGETS:
        for name in ts.methods(site="vectors"):
            for seed in SEEDS if name in DRAWS else SEEDS[:1]:
                out.append((f"{name}@{keep}#{seed}", lambda n=name, k=keep, s=seed: fewer(n, k, s)))
    for name, keep in (("full", 1.0), *POOLED):
        for how in CODECS:
            if how != EXACT:
                out.append((f"{name}@{keep}+{how}", lambda h=how, n=name, k=keep: coded(h, n, k)))
    return out


def main(file: Path = Path("out/retrieval.json")) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write(measure(file))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
