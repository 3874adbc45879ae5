"""Side by side with fast-plaid and LanceDB: `python -m benchmarks.peers` (`make peers`).

Every peer has an environment of its own in `out/peers/` (fast-plaid replaces the installed torch), made by the first run, and
searches the same 2,000 x 64 x 128 clustered vectors in a process of its own, one query at a time, on one thread and on
all. Ours and the bare matrix product are measured in the same run. Writes the table of docs/measured/peers.md. Names of peers as
arguments leave out the others.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.pages import table
from benchmarks.peers_child import timed
from benchmarks.search_speed import BEST, DIM, LENGTH, QUERIES, QUERY, SMALL, documents, queries
from tokensieve.bench.results import environment
from tokensieve.retrieval import Index, maxsim

FOLDER = Path("out/peers")
PAGE = Path("docs/measured/peers.md")
PACKAGES = {"lancedb": ("lancedb==0.40.0", "numpy==2.4.6"), "fast-plaid": ("fast-plaid==1.7.0.2110",)}
CHILD = Path(__file__).with_name("peers_child.py")
LIMIT = 600
"""Seconds for all that a peer does with one number of threads."""
NOTES = {
    "lancedb": "LanceDB chooses how many threads it uses. From its product quantization it scores documents as XTR does, by the "
    "nearest vectors of each query vector alone, as many as results are asked for: that limits its recall, and not how finely "
    "vectors are quantized (64 bytes for one instead of the 8 of its defaults changed nothing). `refine_factor` multiplies how "
    "many it looks at; of 1, 2, 5 and 10 the last is the first with a recall of 0.95.",
    "fast-plaid": "fast-plaid is shown with its defaults, whose 4 bits stay below a recall of 0.95 with 1 to 32 clusters read, "
    "and with the smallest settings that reach it, of 4 and 8 bits, 1 and 8 clusters, 16 to 4,096 documents scored in full.",
}


def ours(docs: torch.Tensor, asked: np.ndarray) -> list[dict[str, Any]]:
    """The bare matrix product with max, and our index by several codecs."""
    every = docs.flatten(0, 1)

    def bare(query: np.ndarray) -> Sequence[Any]:
        scores = (every @ torch.from_numpy(query).T).view(SMALL, LENGTH, -1).amax(1).sum(1)
        return scores.topk(BEST).indices.tolist()

    spent, found = timed(bare, asked)
    out = [
        {"what": "matrix product and max, float32 in memory", "ms": spent, "found": found, "bytes": 4 * docs.numel()}
    ]
    for codec, rerank in (("float16", 0), ("int8", 0), ("int8", 100), ("int4", 0), ("int4", 100)):
        with tempfile.TemporaryDirectory() as folder, Index.create(folder, DIM, codec) as index:
            start = time.perf_counter()
            index.add(docs)
            built = time.perf_counter() - start
            spent, found = timed(
                lambda q: [h.id for h in index.search(torch.from_numpy(q), BEST, rerank=rerank)],  # noqa: B023
                asked,
            )
            how = f"{rerank} candidates reranked" if rerank else "exact"
            out.append({"what": f"tokensieve, {codec}, {how}", "ms": spent, "found": found,
                        "bytes": index.size["bytes"], "build s": built})  # fmt: skip
    return out


def environment_of(name: str) -> Path:
    """The python of a peer's own environment."""
    folder = FOLDER / name
    python = folder / "bin" / "python"
    if not (folder / "made").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        for package in PACKAGES[name]:
            subprocess.run([*pip, package], check=True)
        (folder / "made").touch()
    return python


def peer(name: str, threads: int, index: Path) -> tuple[list[dict[str, Any]], bool]:
    """The rows of a peer's process, and whether it ended in time; ``index`` holds what it builds for the processes after it."""
    count = {f"{k}_NUM_THREADS": str(threads) for k in ("OMP", "MKL", "OPENBLAS", "RAYON", "LANCE_CPU")}
    env = {**os.environ, **count, "LANCE_CPU_THREADS": str(threads)}
    out = index / f"{threads}.jsonl"
    command = [str(environment_of(name)), str(CHILD), name, str(FOLDER / "vectors.npz"), str(index), str(out)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        done = None
    if done is not None and done.returncode:
        raise RuntimeError(f"{name} ended with {done.returncode}: {done.stderr[-2000:]}")
    lines = out.read_text(encoding="utf-8").splitlines() if out.exists() else []
    return [json.loads(line) for line in lines], done is not None


def main(names: Sequence[str]) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in names:
        environment_of(name)
    docs = documents(SMALL)
    asked = queries(docs)
    truth = maxsim(asked, docs).topk(BEST, 1).indices.tolist()
    np.savez(FOLDER / "vectors.npz", docs=docs.numpy(), queries=asked.numpy())
    rows, late = [], []
    with tempfile.TemporaryDirectory() as folder:
        # All threads first: what is built then is searched by one thread too.
        for threads in sorted({1, os.cpu_count() or 1}, reverse=True):
            torch.set_num_threads(threads)
            made = ours(docs, asked.numpy())
            for name in names:
                index = Path(folder, name)
                index.mkdir(exist_ok=True)
                theirs, ended = peer(name, threads, index)
                made += theirs
                late += [] if ended else [{"peer": name, "threads": threads}]
            for row in made:
                shared = [len({*a} & {*b}) for a, b in zip(row.pop("found"), truth, strict=True)]
                rows.append({"threads": threads, **row, "recall": sum(shared) / (BEST * QUERIES)})
                spent, reached = median(row["ms"]), rows[-1]["recall"]
                print(f"{threads} threads, {row['what']}: {spent:.1f} ms, recall {reached:.3f}", flush=True)
    record = {
        "format": "tokensieve.peers.2", "date": time.strftime("%Y-%m-%d"), **environment(), "peers": list(names),
        "limit s": LIMIT, "late": late, "rows": rows,
    }  # fmt: skip
    (FOLDER / "peers.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    PAGE.write_text(page(record), encoding="utf-8")


def page(record: dict[str, Any]) -> str:
    """The page of a record."""
    missing = [name for name in PACKAGES if name not in record["peers"]]
    counts = sorted({row["threads"] for row in record["rows"]})
    by: dict[str, dict[int, dict[str, Any]]] = {}
    for row in record["rows"]:
        by.setdefault(row["what"], {})[row["threads"]] = row
    rows = []
    for what, of in by.items():
        most = of[max(of)]
        times = [f"{median(of[n]['ms']):.1f}" if n in of else "" for n in counts]
        built = f"{most['build s']:.1f}" if "build s" in most else ""
        rows.append([what, *times, f"{most['recall']:.3f}", f"{most['bytes'] / SMALL:,.0f}", built])
    said = [
        f"`make peers`: {SMALL:,} documents of {LENGTH} vectors of {DIM} dimensions, clustered as text is (a document's "
        f"vectors lie around 8 of 1,000 topics), the same for all; {QUERIES} queries of {QUERY} vectors, one at a time; "
        f"medians. Recall is of the {BEST} best of exact search in float32; bytes are of a document, files on disk; indexes "
        "are built by all threads. Every peer runs in a process and an environment of its own.",
        f"{record['date']}, {record['cpu']}, {record['cores']} cores, torch {record['versions']['torch']}. Measured: "
        f"{', '.join(record['peers'])}."
        + "".join(f" {name}, which the script measures too, was not in this run." for name in missing)
        + "".join(
            f" {x['peer']} with {x['threads']} thread{'s' * (x['threads'] > 1)} had not ended after {record['limit s']} "
            "seconds; rows show what it had done."
            for x in record["late"]
        ),
    ]  # fmt: skip
    head = ["", *(f"ms, {n} thread{'s' * (n > 1)}" for n in counts), "recall@10", "bytes", "build, s"]
    notes = [NOTES[name] for name in record["peers"] if name in NOTES]
    return "\n\n".join(["# Beside other libraries", *said, table(head, rows), *notes]) + "\n"


if __name__ == "__main__":
    main(sys.argv[1:] or list(PACKAGES))
