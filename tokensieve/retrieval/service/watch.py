"""Watch: what a service has answered and how fast, for a log and for Prometheus."""

from __future__ import annotations

import logging
import os
import re
import secrets
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from tokensieve.extras import Lazy
from tokensieve.retrieval.index.searching import Searching
from tokensieve.retrieval.service.gather import Gatherer

log = logging.getLogger("tokensieve.service")
BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Seconds of the buckets that answers are counted in."""
ID = re.compile(rb"[\w.:-]{1,64}")
HEADER = b"x-request-id"
core: Any = Lazy("prometheus_client.core", "serve")
exposition: Any = Lazy("prometheus_client", "serve")


class Watch:
    """Counts of one process."""

    def __init__(self, library: Searching, gatherer: Gatherer) -> None:
        self.library, self.gatherer = library, gatherer
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, str, int]] = Counter()
        self._seconds: dict[str, list[int]] = {}
        self._sums: Counter[str] = Counter()

    def seen(self, method: str, path: str, status: int, seconds: float) -> None:
        """Count an answer."""
        with self._lock:
            self._requests[method, path, status] += 1
            self._seconds.setdefault(path, [0] * (len(BOUNDS) + 1))[bisect_left(BOUNDS, seconds)] += 1
            self._sums[path] += seconds  # type: ignore[assignment]

    def text(self) -> bytes:
        """In Prometheus' form."""
        return exposition.generate_latest(self)

    def collect(self) -> Iterator[Any]:
        """The families of metrics; what Prometheus' client calls."""
        own = {"worker": str(os.getpid())}
        with self._lock:
            requests, sums = dict(self._requests), dict(self._sums)
            seconds = {path: list(counts) for path, counts in self._seconds.items()}
        name = "tokensieve_requests"
        answered = core.CounterMetricFamily(name, "Requests answered.", labels=["method", "path", "status", *own])
        for (method, path, status), count in requests.items():
            answered.add_metric([method, path, str(status), *own.values()], count)
        yield answered
        spent = core.HistogramMetricFamily(
            "tokensieve_request_seconds", "Seconds until a request was answered.", labels=["path", *own]
        )
        for path, counts in seconds.items():
            ends = [*map(str, BOUNDS), "+Inf"]
            buckets = [(end, sum(counts[: i + 1])) for i, end in enumerate(ends)]
            spent.add_metric([path, *own.values()], buckets, sums[path])
        yield spent
        size = self.library.size
        for name, what, value in (
            ("tokensieve_waiting_requests", "Searches that wait for their turn.", self.gatherer.waiting),
            ("tokensieve_passages", "Passages of the index.", size["documents"]),
            ("tokensieve_vectors", "Vectors of the index.", size["vectors"]),
            ("tokensieve_index_bytes", "Bytes of the index's segments.", size["bytes"]),
            ("tokensieve_damaged_parts", "Parts of the index that cannot be read.", len(self.library.damaged)),
        ):
            gauge = core.GaugeMetricFamily(name, what, labels=[*own])
            gauge.add_metric([*own.values()], value)
            yield gauge
        for name, what, value in (
            ("tokensieve_search_batches", "Batches of searches.", self.gatherer.batches),
            ("tokensieve_searches", "Queries in them.", self.gatherer.searched),
        ):
            counter = core.CounterMetricFamily(name, what, labels=[*own])
            counter.add_metric([*own.values()], value)
            yield counter


class Watched:
    """Gives every request an id, its own if it brings one, and counts and logs what became of it; queries are never logged."""

    def __init__(self, app: Any, watch: Watch) -> None:
        self.app, self.watch = app, watch

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        given = dict(scope["headers"]).get(HEADER, b"")
        name = given if ID.fullmatch(given) else secrets.token_hex(8).encode()
        start, status = time.perf_counter(), 500

        async def named(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], (HEADER, name)]}
            await send(message)

        try:
            await self.app(scope, receive, named)
        finally:
            spent = time.perf_counter() - start
            route = getattr(scope.get("route"), "path", "other")
            self.watch.seen(scope["method"], route, status, spent)
            log.info("%s %s %s %d %.0f ms", name.decode(), scope["method"], quote(scope["path"]), status, 1e3 * spent)
