"""Words beside meaning: does fusing BM25 with MaxSim find more, on docstrings (`benchmarks.reference.docstrings`)?

`python -m benchmarks.hybrid` indexes all passages as `tokensieve index` stores them (int8, candidates by pooled sketches), asks
the first 1,000 held-out queries in each way, and prints nDCG@10 with the paired 95% interval against MaxSim alone. What is done
stays in `out/hybrid`; the same command goes on from there.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from benchmarks.retrieval import QUERIES, CheckContext
from tokensieve.core.files import write_json
from tokensieve.retrieval import Index
from tokensieve.retrieval.evaluation.evaluate import measures, spread
from tokensieve.retrieval.index.fusion import Fuse, fused
from tokensieve.retrieval.index.manifest import MANIFEST

OUT = Path("out/hybrid")
WAYS: tuple[Fuse, ...] = ("rrf", 0.1, 0.3, 0.5, 1.0)
K = 10


def indexed(bed: CheckContext) -> Index:
    """The passages by their numbers."""
    at, bodies = OUT / "index", bed.collection.bodies
    if (at / MANIFEST).exists():
        return Index.open(at)
    index = Index.create(at, bed.encoder.identity.dim, "int8")
    with index:
        index.add(list(bed.documents.ragged), list(map(str, range(len(bodies)))), [{"text": text} for text in bodies])
        index.tune()
    return index


def main() -> None:
    """Index, ask, compare."""
    bed = CheckContext(queries=slice(QUERIES))
    index, file = indexed(bed), OUT / "results.json"
    ranks: dict[str, list[int]] = json.loads(file.read_text()) if file.exists() else {}
    asked, texts = list(bed.queries.ragged), [text.replace('"', " ") for text in bed.texts]
    for i in track(range(len(ranks.get("none", ())), len(texts)), "queries", console=Console(stderr=True)):
        right = str(int(bed.relevant[i]))
        found = {"none": index.search(asked[i], K)}
        candidates = index.candidates(asked[i], texts[i], K, None, None, 0.5, index.word_counts(texts[i]))
        found |= {str(way): fused(candidates, K, way) for way in WAYS}
        for way, hits in found.items():
            ids = [hit.id for hit in hits]
            ranks.setdefault(way, []).append(ids.index(right) + 1 if right in ids else 0)
        if i % 50 == 49 or i == len(texts) - 1:
            write_json(file, ranks)
    quality = {way: measures(np.where(np.array(r) > 0, np.array(r), np.inf))["nDCG@10"] for way, r in ranks.items()}
    for way, values in quality.items():
        low, high = spread(values, quality["none"])
        print(f"fuse={way}: nDCG@10 {values.mean():.4f}, against none {low:+.4f} to {high:+.4f}, {len(values)} queries")


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
