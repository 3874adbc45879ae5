"""The service under load: one client against twenty, in a closed loop, both while documents are put in.

`python -m benchmarks.service_load` indexes part of Python's library, serves it (`tokensieve serve`, its own process) and asks
it from another process in turns: one client, twenty, one, twenty, ... while a third puts documents in all the time. It prints
searches a second of both, the ratio, the 95th percentile of the answers' times over the median of one search alone, errors, the
share of a CPU that asking took, what one batch of twenty queries costs by itself (the ceiling), and whether every document that
was answered for is there. The same is written to `out/service-load.json`.
"""

from __future__ import annotations

import http.client
import json
import multiprocessing
import re
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.folders import _code
from tokensieve.core.files import write_json
from tokensieve.retrieval.index.library import Library
from tokensieve.retrieval.index.recipe import Recipe
from tokensieve.retrieval.sources.texts import Text

CLIENTS, SECONDS, ROUNDS = 20, 8.0, 3
QUERIES = (
    "parse command line options", "copy a directory tree", "make a temporary file", "compare two texts", "read a tar archive",
    "configuration file with sections", "rotate log files", "median of data", "insert into a sorted list", "priority queue",
    "split a string like the shell", "wrap a paragraph", "time a statement", "send mail", "cache results of a function",
    "secure token", "print a calendar", "serve files", "write a csv file", "pool of threads",
)  # fmt: skip


def ask(port: int, clients: int, seconds: float, out: Any) -> None:
    """Closed loops: each client asks again as soon as it has been answered."""
    times: list[float] = []
    errors: list[str] = []
    end = time.perf_counter() + seconds

    def loop(number: int) -> None:
        connection, i = http.client.HTTPConnection("127.0.0.1", port, timeout=120), number
        while time.perf_counter() < end:
            body, start = json.dumps({"query": QUERIES[i % len(QUERIES)], "k": 10}), time.perf_counter()
            connection.request("POST", "/search", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            read = answer.read()
            times.append(time.perf_counter() - start)
            if answer.status != 200:
                errors.append(read.decode()[:200])
            i += 1

    begun = time.perf_counter()
    threads = [threading.Thread(target=loop, args=(n,)) for n in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    used = resource.getrusage(resource.RUSAGE_SELF)
    spent = time.perf_counter() - begun
    out.put(
        {"rate": len(times) / spent, "times": times, "errors": errors, "cpu": (used.ru_utime + used.ru_stime) / spent}
    )


def put_in(port: int, stop: Any, done: Any) -> None:
    """Documents, ten at a time, until told to stop; says how many were answered for."""
    connection, count = http.client.HTTPConnection("127.0.0.1", port, timeout=300), 0
    while not stop.is_set():
        lines = [
            json.dumps({"id": f"new {count + i}", "text": f"note {count + i} " + "of words " * 60}) for i in range(10)
        ]
        connection.request("POST", "/documents", "\n".join(lines), {"Content-Type": "application/x-ndjson"})
        answer = connection.getresponse()
        answer.read()
        if answer.status == 200:
            count += 10
    done.put(count)


def measured(at: Path, seconds: float, rounds: int) -> dict[str, Any]:
    """Both loads in turns, during one ingest."""
    context = multiprocessing.get_context("spawn")
    command = [
        sys.executable,
        "-c",
        "from tokensieve.cli.main import main; main()",
        "serve",
        str(at),
        "--port",
        "0",
        "--no-log",
    ]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        port = int(re.search(r":(\d+)  ", server.stdout.readline())[1])  # type: ignore[index]
        out, stop, done = context.Queue(), context.Event(), context.Queue()

        def load(clients: int) -> dict[str, Any]:
            asking = context.Process(target=ask, args=(port, clients, seconds, out))
            asking.start()
            found = out.get()
            asking.join()
            return found

        load(1)
        alone = median(load(1)["times"])
        writer = context.Process(target=put_in, args=(port, stop, done))
        writer.start()
        one, many = [], []
        for _ in range(rounds):
            one.append(load(1))
            many.append(load(CLIENTS))
        stop.set()
        answered = done.get()
        writer.join()
    finally:
        server.terminate()
        server.wait()
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
