"""One peer in its own environment: searches the vectors of a file and prints what it took, as JSON.

Stands alone: tokensieve is not installed where this runs.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

BEST = 10


def timed(search, asked):
    """Milliseconds of each query, the first of them once before, and the documents found."""
    search(asked[0])
    spent, found = [], []
    for query in asked:
        start = time.perf_counter()
        hits = search(query)
        spent.append(1e3 * (time.perf_counter() - start))
        found.append([int(h) for h in hits])
    return spent, found


def size(folder):
    return sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file())


def lancedb(docs, asked, folder):
    """Flat, and by product quantization, with and without the best ones scored again by their vectors."""
    import lancedb as lance
    import pyarrow as pa

    count, length, dim = docs.shape
    flat = pa.FixedSizeListArray.from_arrays(pa.array(docs.reshape(-1)), dim)
    vectors = pa.ListArray.from_arrays(pa.array(np.arange(count + 1, dtype=np.int32) * length), flat)
    start = time.perf_counter()
    table = lance.connect(folder).create_table("docs", pa.table({"id": pa.array(range(count)), "vectors": vectors}))
    built = time.perf_counter() - start
    name = f"LanceDB {version('lancedb')}"

    def by(change):
        def search(query):
            asked = table.search(query, vector_column_name="vectors").distance_type("cosine")
            return change(asked).limit(BEST).select(["id", "_distance"]).to_arrow()["id"].to_pylist()

        return search

    def row(what, change, seconds):
        spent, found = timed(by(change), asked)
        return {"what": f"{name}, {what}", "ms": spent, "found": found, "bytes": size(folder), "build s": seconds}

    yield row("flat", lambda a: a, built)
    start = time.perf_counter()
    table.create_index(metric="cosine", vector_column_name="vectors", num_partitions=64, num_sub_vectors=32)
    built += time.perf_counter() - start
    yield row("IVF_PQ", lambda a: a.nprobes(16), built)
    yield row("IVF_PQ, refined 10x", lambda a: a.nprobes(16).refine_factor(10), built)


def fast_plaid(docs, asked, folder):
    """4 bits, as it comes, and with fewer clusters read."""
    import torch
    from fast_plaid import search as plaid

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    start = time.perf_counter()
    index = plaid.FastPlaid(index=folder, device="cpu")
    index.create(documents_embeddings=[torch.from_numpy(d) for d in docs], nbits=4, seed=0)
    built = time.perf_counter() - start
    name = f"fast-plaid {version('fast-plaid')}"
    for probe in (8, 32):

        def search(query):
            asked = torch.from_numpy(query)[None]
            return [i for i, _ in index.search(asked, top_k=BEST, n_ivf_probe=probe, show_progress=False)[0]]  # noqa: B023

        spent, found = timed(search, asked)
        yield {"what": f"{name}, 4 bits, {probe} clusters probed", "ms": spent, "found": found, "bytes": size(folder),
               "build s": built}  # fmt: skip


if __name__ == "__main__":
    name, file = sys.argv[1:]
    held = np.load(file)
    run = {"lancedb": lancedb, "fast-plaid": fast_plaid}[name]
    with tempfile.TemporaryDirectory() as folder:
        # What libraries print goes with the rest; the last line is read.
        rows = list(run(held["docs"], held["queries"], folder))
    print(json.dumps(rows))
