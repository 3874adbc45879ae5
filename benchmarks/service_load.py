"""The service under load: one client against twenty, in a closed loop, both while documents are put in.

`python -m benchmarks.service_load` indexes part of Python's library, serves it (`tokensieve serve`, its own process) and asks
it from another process in turns: one client, twenty, one, twenty, ... while a third puts documents in all the time. It prints
searches a second of both, the ratio, the 95th percentile of the answers' times over the median of one search alone, errors, the
share of a CPU that asking took, what one batch of twenty queries costs by itself (the ceiling), and whether every document that
was answered for is there. The same is written to `out/service-load.json`.

It asks by Debian's `hey`, which is fetched into `out/hey` where it is not installed; where it cannot be had, and with `own`, by
`benchmarks.load_client`, whose clients ask queries of several lengths (those of `hey` all ask one).
"""

from __future__ import annotations

import json
import re
import resource
import shutil
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


HEY = Path("out/hey")


def hey() -> str | None:
    """Where the program is; None where it can neither be found nor fetched."""
    own = HEY / "usr/bin/hey"
    if not shutil.which("hey") and not own.exists():
        HEY.mkdir(parents=True, exist_ok=True)
        try:
            subprocess.run(["apt-get", "download", "hey"], cwd=HEY, check=True, capture_output=True)
            subprocess.run(["dpkg-deb", "-x", next(HEY.glob("hey_*.deb")), HEY], check=True)
        except (OSError, subprocess.CalledProcessError, StopIteration) as problem:
            print(f"hey cannot be had ({problem}); asked by benchmarks.load_client", file=sys.stderr)
            return None
    return shutil.which("hey") or str(own.resolve())


def by_hey(program: str, port: int, clients: int, seconds: float) -> dict[str, Any]:
    """What ``load_client.ask`` tells, of clients that all ask the same."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    body = json.dumps({"query": QUERIES[0], "k": 10})
    more = ["-m", "POST", "-T", "application/json", "-d", body, f"http://127.0.0.1:{port}/search"]
    said = subprocess.check_output([program, "-z", f"{seconds}s", "-c", str(clients), *more], text=True)
    after, spent = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - begun
    at = {int(share): float(took) for share, took in re.findall(r"(\d+)% in ([\d.]+) secs", said)}
    statuses = {int(status): int(n) for status, n in re.findall(r"\[(\d+)\]\t(\d+) responses", said)}
    errors = [f"{n} times {status}" for status, n in statuses.items() if status != 200]
    errors += said.partition("Error distribution:")[2].split("\n")[1:]
    found = re.search(r"Requests/sec:\s+([\d.]+)", said)
    assert found, said
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "rate": float(found[1]), "median": at[50], "p95": at.get(95, max(at.values())),
        "errors": [e.strip() for e in errors if e.strip()], "cpu": used / spent,
    }  # fmt: skip


def by_own(port: int, clients: int, seconds: float) -> dict[str, Any]:
    """The same by clients of our own."""
    asking = [sys.executable, "-m", "benchmarks.load_client", str(port), str(clients), str(seconds)]
    told = json.loads(subprocess.check_output(asking))
    times = sorted(told["times"])
    return {**told, "median": median(times), "p95": times[int(0.95 * len(times))]}


def measured(at: Path, seconds: float, rounds: int, program: str | None) -> dict[str, Any]:
    """Both loads in turns, during one ingest."""
    with serving(at, "--no-log") as (_, port):

        def load(clients: int) -> dict[str, Any]:
            return by_hey(program, port, clients, seconds) if program else by_own(port, clients, seconds)

        load(1)
        alone = load(1)["median"]
        asking = [sys.executable, "-m", "benchmarks.load_client", str(port), "ingest"]
        writer = subprocess.Popen(asking, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
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
    return {
        "asked by": "hey" if program else "benchmarks.load_client", "passages": len(library),
        "searches a second, one": [round(o["rate"], 2) for o in one],
        f"searches a second, {CLIENTS}": [round(m["rate"], 2) for m in many],
        "ratio": round(median(m["rate"] / o["rate"] for o, m in zip(one, many, strict=True)), 2),
        "ms alone, no ingest": round(1e3 * alone, 1), "p95 over one alone": [round(m["p95"] / alone, 1) for m in many],
        "errors": [e for load in (*one, *many) for e in load["errors"]],
        "share of a CPU for asking": round(median(m["cpu"] for m in many), 2),
        "a second, in one batch of this process": round(CLIENTS / (time.perf_counter() - start), 1),
        "documents answered for": answered, "lost": sum(f"new {i}" not in names for i in range(answered)),
    }  # fmt: skip


def main(seconds: float = SECONDS, rounds: float = ROUNDS, own: bool = False) -> None:
    program = None if own else hey()
    with TemporaryDirectory() as folder:
        at = Path(folder) / "index"
        library = Library.create(at, Recipe())
        library.put(Text(name, data.decode(), reader="code") for name, data in list(_code())[:12])
        library.tune()
        library.close()
        result = measured(at, seconds, int(rounds), program)
    write_json(Path("out/service-load.json"), result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    given = [a for a in sys.argv[1:] if a != "own"]
    main(*map(float, given), own="own" in sys.argv)
