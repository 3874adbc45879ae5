"""Where tokens leave: inside the encoder, of what it gives, or both, at the same number of stored vectors.

`python -m benchmarks.inside` encodes the first docstrings of the leaderboard again by each plan, resumed from out/inside.json,
and fills the table of docs/how-to/encoders.md. All held-out queries of these passages are asked.
"""

from __future__ import annotations

import json
import sys
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

import tokensieve as ts
from benchmarks.pages import fill, table
from benchmarks.retrieval import CheckContext
from tokensieve.bench.results import environment
from tokensieve.core.files import write_json
from tokensieve.retrieval.encoders.encoded import Encoded
from tokensieve.retrieval.encoders.loading import load_encoder
from tokensieve.retrieval.encoders.reduce import reduce
from tokensieve.retrieval.evaluation.evaluate import measures, spread
from tokensieve.retrieval.index.tune import timed

PAGE = Path(__file__).parent.parent / "docs" / "how-to" / "encoders.md"
FORMAT = "tokensieve.inside.1"
PASSAGES = 600
TURNS, TIMED = 5, 16
"""Turns of the encoders on so many passages, one after the other."""
CELLS: dict[str, tuple[tuple[str, float] | None, tuple[str, float] | None]] = {
    "all vectors": (None, None),
    "tome 0.5 inside": (("tome", 0.5), None),
    "agglomerative 0.5 of what it gives": (None, ("agglomerative", 0.5)),
    "random 0.5 inside": (("random", 0.5), None),
    "random 0.5 of what it gives": (None, ("random", 0.5)),
    "tome 0.25 inside": (("tome", 0.25), None),
    "tome 0.5 inside, agglomerative 0.5 of that": (("tome", 0.5), ("agglomerative", 0.5)),
    "agglomerative 0.25 of what it gives": (None, ("agglomerative", 0.25)),
    "random 0.25 of what it gives": (None, ("random", 0.25)),
}
"""By name: what is done between the blocks, and to what the encoder gives."""


def encoder(inside: tuple[str, float] | None) -> Any:
    return load_encoder() if inside is None else load_encoder(plan=ts.plan(*inside, site="encoder"))


def measure(file: Path) -> dict[str, Any]:
    """Ranks, vectors of a passage and time over the plain encoder's of every cell, complete after each plan."""
    bed = CheckContext(PASSAGES)
    of = {"format": FORMAT, "collection": bed.collection.digest, "encoder": bed.encoder.identity.digest}
    about = {**environment(), "date": date.today().isoformat(), "queries": len(bed.texts)}
    data: dict[str, Any] = {**of, **about, "cells": {}}
    if file.exists():
        data = json.loads(file.read_text())
        if any(data.get(k) != v for k, v in of.items()):
            raise ValueError(f"{file} holds results of another collection or encoder; delete it, or name another file")
    for inside in dict.fromkeys(i for i, _ in CELLS.values()):
        own = {name: outside for name, (i, outside) in CELLS.items() if i == inside}
        if own.keys() <= data["cells"].keys():
            continue
        made, over = bed.documents, 1.0
        if inside is not None:
            made, over = _encoded(bed, inside)
        for name, outside in own.items():
            kept = made if outside is None else reduce(made, *outside)
            data["cells"][name] = {
                "ranks": bed.ranks(kept).tolist(), "vectors": len(kept.vectors) / len(kept), "over": over
            }  # fmt: skip
        write_json(file, data)
    return data


def _encoded(bed: CheckContext, inside: tuple[str, float]) -> tuple[Encoded, float]:
    """All passages by a plan, and its time over that of the plain encoder, in turns."""
    plain, fewer, texts = encoder(None), encoder(inside), bed.collection.bodies
    some = texts[:: len(texts) // TIMED][:TIMED]
    turns = [(timed(fewer.documents, some)[1], timed(plain.documents, some)[1]) for _ in range(TURNS)]
    return fewer.documents(texts), median(a / b for a, b in turns)


def page(data: dict[str, Any]) -> str:
    cells = {name: data["cells"][name] for name in CELLS}
    quality = {name: measures(np.array(c["ranks"])) for name, c in cells.items()}
    whole = quality["all vectors"]["nDCG@10"]
    rows = []
    for name, cell in cells.items():
        own = quality[name]["nDCG@10"]
        low, high = (100 * v / whole.mean() for v in spread(own, whole))
        change = 100 * (own.mean() / whole.mean() - 1)
        rows.append([
            name, f"{cell['vectors']:.1f}", f"{cell['over']:.2f}", f"{own.mean():.4f}", f"{change:+.1f}%",
            f"{low:+.1f} to {high:+.1f}", f"{quality[name]['MRR'].mean():.4f}",
        ])  # fmt: skip
    head = ("tokens leave", "vectors", "time to encode", "nDCG@10", "change", "95%", "MRR")
    return (
        f"Measured on {data['date']}: the first {PASSAGES} passages and their {data['queries']} held-out queries of the "
        f"[leaderboard](../measured/retrieval-leaderboard.md), MiniLM, {data['cpu']}. Vectors are of a passage; time is "
        f"over that of the plain encoder. `python -m benchmarks.inside` measures again.\n\n{table(head, rows)}"
    )


def main(file: Path = Path("out/inside.json")) -> None:
    torch.set_num_threads(1)
    file.parent.mkdir(parents=True, exist_ok=True)
    fill(PAGE, "inside", page(measure(file)))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
