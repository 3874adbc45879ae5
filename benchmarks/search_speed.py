"""Speed and size of late-interaction search: ratios within one run, medians of runs that take turns.

On clustered vectors: a document's tokens lie around 8 of 1,000 topics, a query's tokens around 32 of one document's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import normalize

from tokensieve.bench.results import environment
from tokensieve.codec import CODECS
from tokensieve.retrieval import Index, Ragged, maxsim
from tokensieve.retrieval.ragged import bounds
from tokensieve.retrieval.sketch import SKETCHES

SMALL, LARGE, LENGTH, DIM, QUERY, TOPICS, SEED = 2_000, 10_000, 64, 128, 32, 1_000, 0
QUERIES, REPEATS, BEST = 12, 5, 10
GOALS = {
    "equal": 1.15, "ragged": 1.15, "two stages": 0.30, "recall": 0.99, "tokens per second": 20_000,
    "open ms": 50.0, "resident over codes": 1.3,
}  # fmt: skip


def documents(count: int, noise: float = 0.7) -> Tensor:
    """``(count, LENGTH, DIM)``."""
    g = torch.Generator().manual_seed(SEED)
    centres = normalize(torch.randn(TOPICS, DIM, generator=g), dim=1)
    topics = torch.randint(0, TOPICS, (count, 8), generator=g)
    out = torch.empty(count, LENGTH, DIM)
    for rows, some in zip(out.split(1000), topics.split(1000), strict=True):
        token = some.gather(1, torch.randint(0, 8, (len(some), LENGTH), generator=g))
        rows.copy_(normalize(centres[token] + noise * torch.randn(rows.shape, generator=g) * DIM**-0.5, dim=2))
    return out


def queries(docs: Tensor, noise: float = 0.7) -> Tensor:
    """``(QUERIES, QUERY, DIM)``."""
    g = torch.Generator().manual_seed(SEED + 1)
    source = docs[torch.randint(0, len(docs), (QUERIES,), generator=g)][:, ::2]
    return normalize(source + noise * torch.randn(source.shape, generator=g) * DIM**-0.5, dim=2)


def ragged(docs: Tensor) -> Ragged:
    """The same tokens in documents of 1 to 127."""
    g = torch.Generator().manual_seed(SEED + 2)
    lengths = torch.randint(1, 2 * LENGTH, (len(docs),), generator=g)
    offsets = bounds(lengths)
    offsets = (offsets * (len(docs) * LENGTH / int(offsets[-1]))).round().long()
    return Ragged(docs.flatten(0, 1), offsets)


def turns(*calls: Callable[[], Any], repeats: int = REPEATS) -> list[list[float]]:
    """Milliseconds of each call, taken in turns."""
    out: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats + 1):
        for call, times in zip(calls, out, strict=True):
            start = time.perf_counter()
            call()
            times.append((time.perf_counter() - start) * 1e3)
    return [times[1:] for times in out]


def exact() -> dict[str, Any]:
    """Exact MaxSim beside the bare product with max, 2,000 documents."""
    docs = documents(SMALL)
    query = queries(docs)[0]
    packed = ragged(docs)
    listed = list(packed)
    bare, *ours = turns(
        lambda: (docs @ query.T).amax(1).sum(1),
        lambda: maxsim(query, docs), lambda: maxsim(query, packed), lambda: maxsim(query, listed),
    )  # fmt: skip
    ratios = {
        name: median(t / b for t, b in zip(times, bare, strict=True))
        for name, times in zip(("equal", "ragged", "list"), ours, strict=True)
    }
    return {"bare ms": median(bare), **ratios}


def codecs() -> list[dict[str, Any]]:
    """Size, build rate, and exact search of each codec beside the bare product of float vectors, 2,000 documents."""
    docs = documents(SMALL)
    asked = queries(docs)
    truth = maxsim(asked, docs)
    out = []
    for name in CODECS:
        with tempfile.TemporaryDirectory() as folder, Index.create(folder, DIM, name) as index:
            start = time.perf_counter()
            index.add(docs)
            seconds = time.perf_counter() - start
            bare, ours = turns(
                lambda: (docs @ asked[0].T).amax(1).sum(1),
                lambda: index.search(asked[0], rerank=0),
            )
            size = sum(v.segment.tokens.nbytes for v in index._state.views) / docs.shape[0] / LENGTH
            out.append(
                {
                    "codec": name, "bytes per token": size, "tokens per second": docs.shape[0] * LENGTH / seconds,
                    "over bare": median(o / b for o, b in zip(ours, bare, strict=True)),
                    "recall": recall(truth, index.search(asked, BEST, rerank=0)),
                }
            )  # fmt: skip
    return out


def recall(truth: Tensor, found: Sequence[Any]) -> float:
    best = truth.topk(BEST, 1).indices.tolist()
    pairs = zip(best, found, strict=True)
    return sum(len({str(i) for i in b} & {h.id for h in hits}) for b, hits in pairs) / (BEST * len(best))


def two_stage(codec: str) -> list[dict[str, Any]]:
    """Candidates and exact rerank beside brute force over float vectors, 10,000 documents."""
    docs = documents(LARGE)
    asked = queries(docs)
    truth = maxsim(asked, docs)
    out = []
    for sketch in SKETCHES:
        with tempfile.TemporaryDirectory() as folder, Index.create(folder, DIM, codec, sketch=sketch) as index:
            for part in docs.split(1000):
                index.add(part)
            index.compact()
            whole = index.search(asked, BEST, rerank=0)
            for depth in (100, 200, 400):
                brute, ours, full = turns(
                    lambda: (docs @ asked[0].T).amax(1).sum(1).topk(BEST),
                    lambda: index.search(asked[0], BEST, rerank=depth),  # noqa: B023
                    lambda: index.search(asked[0], BEST, rerank=0),
                )
                rough = index.search(asked, BEST, rerank=depth)
                same = sum(len({h.id for h in a} & {h.id for h in b}) for a, b in zip(rough, whole, strict=True))
                out.append(
                    {
                        "sketch": sketch, "rerank": depth, "brute ms": median(brute), "ms": median(ours),
                        "over brute": median(o / b for o, b in zip(ours, brute, strict=True)),
                        "all over brute": median(o / b for o, b in zip(full, brute, strict=True)),
                        "recall of the index's exact": same / (BEST * QUERIES), "recall": recall(truth, rough),
                    }
                )  # fmt: skip
            if sketch == "pooled":
                out[-1]["plan"] = index.tune(asked)
    return out


def resident(codec: str) -> dict[str, Any]:
    """Opening, and the resident memory that searches add in a process of its own, over the bytes of the codes."""
    with tempfile.TemporaryDirectory() as folder:
        with Index.create(folder, DIM, codec) as index:
            for part in documents(LARGE).split(1000):
                index.add(part)
            index.compact()
            size = sum(v.segment.tokens.nbytes for v in index._state.views)
        command = [sys.executable, "-m", "benchmarks.search_speed", "--child", folder]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
        return {"codec": codec, "codes mb": size / 2**20, **json.loads(done.stdout.splitlines()[-1])}


def child(folder: str) -> None:
    docs = documents(64)
    asked = queries(docs)
    # What the libraries hold themselves is theirs: one search of another index comes before.
    with tempfile.TemporaryDirectory() as other, Index.create(other, DIM, Index.open(folder)._state.codec.name) as warm:
        warm.add(docs)
        warm.search(asked[0], rerank=0)
    before = _resident()
    start = time.perf_counter()
    index = Index.open(folder)
    opened = (time.perf_counter() - start) * 1e3
    for query in asked:
        index.search(query, rerank=0)
    print(json.dumps({"open ms": opened, "resident mb": (_resident() - before) / 2**20}))


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main(out: Path | None = None) -> None:
    console = Console()
    first = exact()
    console.print(f"2,000 x 64 x 128 over the bare product with max ({first['bare ms']:.1f} ms):", first)
    rows = {"codecs": codecs(), "two stages": two_stage("int4")}
    memory = [resident(c) for c in ("float16", "int4")]
    for m in memory:
        m["resident over codes"] = m["resident mb"] / m["codes mb"]
    rows["memory"] = memory
    for name, table in rows.items():
        keys = [k for k in table[0] if k != "plan"]
        shown = Table(*keys, title=name)
        for r in table:
            shown.add_row(*(f"{r[k]:.3f}" if isinstance(r[k], float) else str(r[k]) for k in keys))
        console.print(shown)
    console.print(rows["two stages"][-1].get("plan") or [r["plan"] for r in rows["two stages"] if "plan" in r])
    if out is not None:
        record = {"format": "tokensieve.search_speed.1", **environment(), "threads": torch.get_num_threads()}
        out.write_text(
            json.dumps({**record, "goals": GOALS, "exact": first, **rows}, indent=2) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2])
    else:
        main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
