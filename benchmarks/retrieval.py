"""One page for all methods of stored vectors: retrieval of real text by fewer vectors and in fewer bytes.

`python -m benchmarks.retrieval` measures what `out/retrieval/` does not hold yet, some queries after the other, and after each
slice of them writes docs/measured/retrieval-leaderboard.md and its plot. Queries are first lines of docstrings,
passages what follows them (`benchmarks.reference.docstrings`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

import tokensieve as ts
from benchmarks.reference.docstrings import Collection, collect
from benchmarks.retrieval_page import joined, write
from tokensieve.bench.results import environment
from tokensieve.core.files import write_json
from tokensieve.retrieval.encoders.encoded import Encoded, Encoder
from tokensieve.retrieval.encoders.loading import load_encoder
from tokensieve.retrieval.encoders.reduce import Frequencies, as_matrix, reduce
from tokensieve.retrieval.evaluation import evaluate
from tokensieve.retrieval.scoring.maxsim import best_matches, sums
from tokensieve.retrieval.storage import FORMATS, vector_format

FORMAT = "tokensieve.retrieval.1"
CACHE = Path("out/encoded")
QUERIES, SLICE = 1000, 250
BUDGETS = (0.5, 0.33, 0.25, 0.1, 0.7)
SEEDS = (0, 1, 2)
DRAWS = ("random",)
EXACT = "float32"
SAMPLE = 2**15
STORED = (("full", 1.0), ("agglomerative", 0.5))
"""What is stored by every codec."""


class CheckContext:
    """The collection and its encoded halves, cached in ``out/``.

    Args:
        passages: the first so many of the collection; None for all.
        queries: which of the held-out queries of those passages.
    """

    def __init__(self, passages: int | None = None, queries: slice = slice(None), held_out: bool = True):
        self.encoder: Encoder = load_encoder()
        whole = collect()
        self.collection = Collection(whole.passages[:passages], whole.sources)
        texts, places = self.collection.queries(held_out)
        self._every, self._places = texts, places
        self._whole, self._held_out = whole, held_out
        self._matrices: dict[Any, Any] = {}
        self.ask(queries)

    def ask(self, queries: slice) -> None:
        """Go on with other queries."""
        self.__dict__.pop("queries", None)
        self.texts, self.relevant = self._every[queries], self._places[queries]

    @cached_property
    def documents(self) -> Encoded:
        """All passages, with every signal that methods read."""
        encoded = self.encoded("passages", self._whole.bodies).rows(range(len(self.collection.passages)))
        return Frequencies().add(encoded).mark(encoded)

    @cached_property
    def queries(self) -> Encoded:
        texts, _ = self._whole.queries(self._held_out)
        every = self.encoded("held-out" if self._held_out else "tuning", texts)
        return every.rows([texts.index(t) for t in self.texts])

    def encoded(self, what: str, texts: list[str]) -> Encoded:
        """All passages ("passages") or queries of a half ("held-out", "tuning"), from the cache where they are in it."""
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

    def matrix(self, name: str, keep: float, seed: int) -> Any:
        """A reduction as a matrix, computed once for all queries."""
        key = (name, keep, seed)
        if key not in self._matrices:
            self._matrices[key] = as_matrix(self.documents, name, keep, seed=seed)
        return self._matrices[key]

    def reduced(self, name: str, keep: float, seed: int = 0, **options: Any) -> Encoded:
        return reduce(self.documents, ts.get_method(name, **options), keep, seed=seed)

    def ranked(self, scores: np.ndarray) -> list[int]:
        return evaluate.ranks(scores, self.relevant).tolist()

    def coded(self, documents: Encoded, name: str) -> tuple[np.ndarray, int]:
        """Scores ``(Q, D)`` with passages stored by a codec, as an index scores them, and the bytes of a vector."""
        made = vector_format(name, documents.vectors.shape[1])
        # A sample spread over the collection: what a codec learns must not depend on its order.
        made = made.fit(documents.vectors[:: max(len(documents.vectors) // SAMPLE, 1)])
        parts = [made.encode(part) for part in documents.vectors.split(SAMPLE)]
        fields = {k: torch.cat([p[k] for p in parts]) for k in parts[0]}
        cuts = documents.offsets.tolist()
        out = []
        for some in torch.arange(len(self.queries)).split(evaluate.TOGETHER):
            queries = self.queries.rows(some)
            prepared = made.prepare(queries.vectors)

            def table(first: int, last: int, start: int, stop: int, into: Tensor, known: Any = prepared) -> Tensor:
                return made.score({k: v[cuts[first] + start : cuts[first] + stop] for k, v in fields.items()}, known)

            best = [b for _, _, b in best_matches(table, documents.offsets, queries.vectors.T)]
            out.append(sums(torch.cat(best), queries.offsets).T.numpy())
        return np.concatenate(out), made.bytes_per_token


def measure(bed: CheckContext, file: Path) -> dict[str, Any]:
    """All cells of the queries that the bed asks, resumed from ``file``, which is complete after each group (written to a
    temporary name first, then renamed).

    Raises:
        ValueError: the file holds the results of another collection or encoder.
    """
    of = {"collection": bed.collection.digest, "encoder": bed.encoder.identity.digest, "texts": bed.texts}
    lengths = bed.documents.lengths
    facts = {
        "sources": bed.collection.sources, "passages": len(lengths), "vectors": int(lengths.sum()),
        "longest": int(lengths.max()), "dim": bed.encoder.identity.dim,
    }  # fmt: skip
    data: dict[str, Any] = {"format": FORMAT, **of, **facts, **environment(), "cells": {}}
    if file.exists():
        data = json.loads(file.read_text())
        if any(data.get(k) != v for k, v in of.items()):
            raise ValueError(
                f"{file} holds results of another collection or encoder; delete it, or name another folder"
            )
    for keys, run in track(groups(bed), description=file.stem, console=Console(stderr=True)):
        if set(keys) <= set(data["cells"]):
            continue
        for key, (ranks, vectors, size) in run().items():
            data["cells"][key] = {"ranks": ranks, "vectors": vectors, "bytes": size}
        write_json(file, data)
    return data


Cells = dict[str, tuple[list[int], int, int]]
"""By key: the ranks, the vectors of all passages and the bytes of one."""


def groups(bed: CheckContext) -> list[tuple[list[str], Callable[[], Cells]]]:
    """What is measured together: keys, and what gives their cells."""
    width = 2 * bed.encoder.identity.dim  # as float16, in which nothing is lost that shows

    def whole() -> Cells:
        docs, single = len(bed.collection.passages), evaluate.single_vector(bed.queries, bed.documents)
        return {
            "bm25": (bed.ranked(evaluate.bm25(bed.texts, bed.collection.bodies)), 0, 0),
            "single": (bed.ranked(single), docs, width),
            "full": (bed.ranks(bed.documents).tolist(), len(bed.documents.vectors), width),
        }

    def fewer(keep: float) -> Cells:
        made = {key: bed.matrix(name, keep, seed) for key, (name, seed) in cells(keep).items()}
        scores = evaluate.several(bed.queries, bed.documents, made)
        return {key: (bed.ranked(scores[key]), int(made[key][1][-1]), width) for key in made}

    def coded(name: str, keep: float, how: str) -> Cells:
        kept = bed.documents if name == "full" else bed.reduced(name, keep)
        scores, size = bed.coded(kept, how)
        return {f"{name}@{keep}+{how}": (bed.ranked(scores), len(kept.vectors), size)}

    out: list[tuple[list[str], Callable[[], Cells]]] = [(["bm25", "single", "full"], whole)]
    out += [(list(cells(keep)), partial(fewer, keep)) for keep in BUDGETS]
    for name, keep in STORED:
        out += [([f"{name}@{keep}+{how}"], partial(coded, name, keep, how)) for how in FORMATS if how != EXACT]
    return out


def cells(keep: float) -> dict[str, tuple[str, int]]:
    """By key, the methods and seeds at one budget."""
    return {
        f"{name}@{keep}#{seed}": (name, seed)
        for name in ts.list_methods(site="vectors")
        for seed in (SEEDS if name in DRAWS else SEEDS[:1])
    }


def main(folder: Path = Path("out/retrieval")) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    bed, parts = CheckContext(), []
    for start in range(0, QUERIES, SLICE):
        bed.ask(slice(start, start + SLICE))
        parts.append(measure(bed, folder / f"queries-{start}.json"))
        write(joined(parts))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
