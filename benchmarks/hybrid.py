"""Words beside meaning: does fusing BM25 with MaxSim find more, on docstrings (`benchmarks.reference.docstrings`)?

`python -m benchmarks.hybrid` indexes all passages as `tokensieve index` stores them (int8, candidates by pooled sketches), asks
the first 1,000 held-out queries in each way, and prints nDCG@10 with the paired 95% interval against MaxSim alone. What is done
stays in `out/hybrid`; the same command goes on from there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from benchmarks.reference.docstrings import collect
from tokensieve.core.files import write_json
from tokensieve.retrieval import Index
from tokensieve.retrieval.encoders.loading import load_encoder
from tokensieve.retrieval.evaluation.evaluate import measures, spread
from tokensieve.retrieval.index.manifest import MANIFEST

OUT = Path("out/hybrid")
WAYS: tuple[Any, ...] = ("none", "rrf", 0.3, 0.5, 1.0)
QUERIES, TOGETHER, K = 1000, 512, 10


def indexed() -> Index:
    """The passages by their numbers, made or gone on with."""
    encoder, bodies = load_encoder(), collect().bodies
    at = OUT / "index"
    index = Index.open(at) if (at / MANIFEST).exists() else Index.create(at, encoder.identity.dim, "int8")
    with index:
        for start in track(range(len(index), len(bodies), TOGETHER), "passages", console=Console(stderr=True)):
            part = bodies[start : start + TOGETHER]
            encoded, names = encoder.documents(part), [str(start + i) for i in range(len(part))]
            index.add([encoded[i] for i in range(len(part))], names, [{"text": text} for text in part])
        if index.plan is None:
            index.tune()
    return index


def main() -> None:
    """Index, ask, compare."""
    index, encoder = indexed(), load_encoder()
    texts, places = collect().queries(held_out=True)
    texts, places = texts[:QUERIES], places[:QUERIES]
    file = OUT / "results.json"
    ranks: dict[str, list[int]] = json.loads(file.read_text()) if file.exists() else {str(way): [] for way in WAYS}
    start = len(ranks["none"])
    for i in track(range(start, len(texts)), "queries", console=Console(stderr=True)):
        vectors = encoder.queries([texts[i]]).vectors
        for way in WAYS:
            hits = index.search(vectors, K, words=texts[i].replace('"', " "), fuse=way)
            found = [hit.id for hit in hits]
            ranks[str(way)].append(found.index(str(places[i])) + 1 if str(places[i]) in found else 0)
        if i % 25 == 24 or i == len(texts) - 1:
            write_json(file, ranks)
    quality = {way: measures(np.where(np.array(r) > 0, np.array(r), np.inf))["nDCG@10"] for way, r in ranks.items()}
    for way, values in quality.items():
        low, high = spread(values, quality["none"])
        print(f"fuse={way}: nDCG@10 {values.mean():.4f}, against none {low:+.4f} to {high:+.4f}, {len(values)} queries")


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
