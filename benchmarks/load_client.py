"""Clients of a service, light enough to be started in the middle of a measurement.

`python -m benchmarks.load_client PORT CLIENTS SECONDS` asks in closed loops and prints what came of it as JSON; with `ingest` in
the place of the clients it puts documents in until its input ends, and prints how many were answered for.
"""

from __future__ import annotations

import http.client
import json
import resource
import sys
import threading
import time
from typing import Any

QUERIES = (
    "parse command line options", "copy a directory tree", "make a temporary file", "compare two texts", "read a tar archive",
    "configuration file with sections", "rotate log files", "median of data", "insert into a sorted list", "priority queue",
    "split a string like the shell", "wrap a paragraph", "time a statement", "send mail", "cache results of a function",
    "secure token", "print a calendar", "serve files", "write a csv file", "pool of threads",
)  # fmt: skip


def ask(port: int, clients: int, seconds: float) -> dict[str, Any]:
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
    return {
        "rate": len(times) / spent,
        "times": times,
        "errors": errors,
        "cpu": (used.ru_utime + used.ru_stime) / spent,
    }


def put_in(port: int) -> int:
    """Documents, ten at a time, until the input ends; how many were answered for."""
    stop = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
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
    return count


if __name__ == "__main__":
    at, what = int(sys.argv[1]), sys.argv[2]
    print(json.dumps(put_in(at) if what == "ingest" else ask(at, int(what), float(sys.argv[3]))))
