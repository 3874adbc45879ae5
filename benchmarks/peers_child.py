"""One peer in its own environment: searches the vectors of a file and writes what each way took, a line of JSON each.

Stands alone: tokensieve is not installed where this runs.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

BEST = 10
REFINE = 10
PLAID = ((4, {}), (8, {"n_ivf_probe": 1, "n_full_scores": 128}))
"""Bits of a number in fast-plaid's index, and what its search is asked besides."""


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


def measured(what, search, asked, folder):
    spent, found = timed(search, asked)
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    return {"what": what, "ms": spent, "found": found, "bytes": size}


def built(folder, make):
    """The seconds of ``make()``, which fills the folder; nothing where that was done before."""
    done = folder.with_suffix(".done")
    if done.exists():
        return {}
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    start = time.perf_counter()
    make()
    spent = time.perf_counter() - start
    done.touch()
    return {"build s": spent}


def lancedb(docs, asked, folder):
    """Flat, and by product quantization as it comes, without and with the vectors of the best read again."""
    import lancedb as lance
    import pyarrow as pa
    from lancedb.index import IvfPq

    count, length, dim = docs.shape
    flat = pa.FixedSizeListArray.from_arrays(pa.array(docs.reshape(-1)), dim)
    vectors = pa.ListArray.from_arrays(pa.array(np.arange(count + 1, dtype=np.int32) * length), flat)
    data = pa.table({"id": pa.array(range(count)), "vectors": vectors})
    for kind, config in {"flat": None, "IVF_PQ": IvfPq("cosine")}.items():

        def make():
            table = lance.connect(folder / kind).create_table("docs", data)  # noqa: B023
            if config is not None:  # noqa: B023
                table.create_index("vectors", config=config)  # noqa: B023

        spent = built(folder / kind, make)
        table = lance.connect(folder / kind).open_table("docs")
        for refine in (None,) if config is None else (None, REFINE):

            def search(query):
                asked = table.search(query, vector_column_name="vectors").distance_type("cosine").limit(BEST)  # noqa: B023
                asked = asked.refine_factor(refine) if refine else asked  # noqa: B023
                return asked.select(["id", "_distance"]).to_arrow()["id"].to_pylist()

            how = f", refine_factor={refine}" if refine else ""
            yield measured(f"LanceDB {version('lancedb')}, {kind}{how}", search, asked, folder / kind) | spent


def fast_plaid(docs, asked, folder):
    """As it comes, and with as many bits and as few clusters read as the recall needs."""
    import torch
    from fast_plaid import search as plaid

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    for bits, options in PLAID:
        path = folder / f"{bits} bits"

        def make():
            index = plaid.FastPlaid(index=str(path), device="cpu")  # noqa: B023
            index.create(documents_embeddings=[torch.from_numpy(d) for d in docs], nbits=bits, seed=0)  # noqa: B023

        spent = built(path, make)
        index = plaid.FastPlaid(index=str(path), device="cpu")

        def search(query):
            hits = index.search(torch.from_numpy(query)[None], top_k=BEST, show_progress=False, **options)  # noqa: B023
            return [i for i, _ in hits[0]]

        how = "".join(f", {name}={value}" for name, value in options.items())
        yield measured(f"fast-plaid {version('fast-plaid')}, nbits={bits}{how}", search, asked, path) | spent


if __name__ == "__main__":
    name, file, folder, out = sys.argv[1:]
    held = np.load(file)
    run = {"lancedb": lancedb, "fast-plaid": fast_plaid}[name]
    with open(out, "w", encoding="utf-8") as rows:
        for row in run(held["docs"], held["queries"], Path(folder)):
            print(json.dumps(row), file=rows, flush=True)
