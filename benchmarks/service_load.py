"""The service under load: one client against twenty, in a closed loop, both while documents are put in.

`python -m benchmarks.service_load` indexes part of Python's library, serves it (`tokensieve serve`, its own process) and asks
it from another process in turns: one client, twenty, one, twenty, ... while a third puts documents in all the time. It prints
searches a second of both, the ratio, the 95th percentile of the answers' times over the median of one search alone, errors, the
share of a CPU that asking took, what one batch of twenty queries costs by itself (the ceiling), and whether every document that
was answered for is there. The same is written to `out/service-load.json`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.folders import _code
from benchmarks.load_client import QUERIES
from benchmarks.served import serving
from tokensieve.core.files import write_json
from tokensieve.retrieval.index.library import Library
from tokensieve.retrieval.index.recipe import Recipe
from tokensieve.retrieval.sources.texts import Text

CLIENTS, SECONDS, ROUNDS = 20, 8.0, 3


def measured(at: Path, seconds: float, rounds: int) -> dict[str, Any]:
    """Both loads in turns, during one ingest."""
    with serving(at, "--no-log") as (_, port):
        asking = [sys.executable, "-m", "benchmarks.load_client", str(port)]

        def load(clients: int) -> dict[str, Any]:
            return json.loads(subprocess.check_output([*asking, str(clients), str(seconds)]))

        load(1)
        alone = median(load(1)["times"])
        writer = subprocess.Popen([*asking, "ingest"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        one, many = [], []
        for _ in range(rounds):
            one.append(load(1))
            many.append(load(CLIENTS))
        answered = int(writer.communicate("")[0])
    library = Library.open(at)
    names = library.names()
    texts = [QUERIES[i % len(QUERIES)] for i in range(CLIENTS)]
    library.search(texts)
    start = time.perf_counter()
    library.search(texts)
    slow = sorted(t for load in many for t in load["times"])
    return {
        "passages": len(library), "searches a second, one": [round(o["rate"], 2) for o in one],
        f"searches a second, {CLIENTS}": [round(m["rate"], 2) for m in many],
        "ratio": round(median(m["rate"] / o["rate"] for o, m in zip(one, many, strict=True)), 2),
        "ms alone, no ingest": round(1e3 * alone, 1), "p95 over one alone": round(slow[int(0.95 * len(slow))] / alone, 1),
        "errors": [e for load in (*one, *many) for e in load["errors"]],
        "share of a CPU for asking": round(median(m["cpu"] for m in many), 2),
        "a second, in one batch of this process": round(CLIENTS / (time.perf_counter() - start), 1),
        "documents answered for": answered, "lost": sum(f"new {i}" not in names for i in range(answered)),
    }  # fmt: skip


def main(seconds: float = SECONDS, rounds: int = ROUNDS) -> None:
    with TemporaryDirectory() as folder:
        at = Path(folder) / "index"
        library = Library.create(at, Recipe(keep=0.5, codec="int4"))
        library.put(Text(name, data.decode(), reader="code") for name, data in list(_code())[:12])
        library.tune()
        library.close()
        result = measured(at, seconds, rounds)
    write_json(Path("out/service-load.json"), result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main(*map(float, sys.argv[1:2]), *map(int, sys.argv[2:3]))
