"""Cluster: Ray does the jobs of a build, and holds the parts that are searched.

All machines of a cluster must see the documents and the shards at the same paths, and have tokensieve installed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokensieve.extras import install
from tokensieve.retrieval.errors import IndexProblem
from tokensieve.retrieval.shards.build import Job
from tokensieve.retrieval.shards.search import Part

try:
    import ray
    import ray.data
except ImportError as error:
    raise ImportError(f"ray is not installed; {install('ray')}") from error

LOCAL = "local"
TRIES = 3
"""How often a process that has died is replaced before its work is given up."""


@dataclass(frozen=True)
class Done:
    """What a job gave, whole: Ray would make columns of mappings and arrays."""

    value: Any


@contextmanager
def joined(address: str = LOCAL) -> Iterator[None]:
    """Join a cluster while this lasts; "local" makes one of processes of this machine, which ends with it."""
    own: dict[str, Any] = {}
    if address == LOCAL:
        # What a library starts by itself reports to nobody.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        own = {"include_dashboard": False, "object_store_memory": 256 << 20}
    ray.init(address, logging_level=logging.ERROR, log_to_driver=False, **own)
    try:
        yield
    finally:
        ray.shutdown()


def cpus() -> int:
    """CPUs of the cluster."""
    return max(int(ray.cluster_resources().get("CPU", 1)), 1)


def run(work: Callable[[Job], Any], jobs: Sequence[Job]) -> Iterator[Any]:
    """All jobs as tasks of Ray Data, one CPU each; that of a worker that has died is done again by another."""

    def task(row: dict[str, Any]) -> dict[str, Any]:
        try:
            return {"done": Done(work(jobs[row["place"]]))}
        except Exception as problem:  # raised where the jobs were given out, as it is
            return {"done": Done(problem)}

    rows = [{"place": place} for place in range(len(jobs))]
    with _silent():
        done = ray.data.from_items(rows, override_num_blocks=len(rows)).map(task, num_cpus=1, max_retries=TRIES)
        for row in done.iter_rows():
            result = row["done"].value
            if isinstance(result, Exception):
                raise result
            yield result


@contextmanager
def _silent() -> Iterator[None]:
    """Without the bars and reports of Ray Data."""
    context, log = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    before = context.enable_progress_bars, log.level
    context.enable_progress_bars = False
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        context.enable_progress_bars = before[0]
        log.setLevel(before[1])


class Actors:
    """The parts of a collection, each an actor of Ray; one that has died is started again and asked again."""

    def __init__(self, folders: Sequence[Path]) -> None:
        share = min(cpus() / len(folders), 1)
        kind = ray.remote(num_cpus=share, max_restarts=TRIES, max_task_retries=TRIES)(Part)
        self._parts: list[Any] = [kind.remote(folder) for folder in folders]

    def ask(self, what: str, *arguments: Any) -> list[Any]:
        given = [ray.put(a) for a in arguments]
        try:
            return ray.get([getattr(part, what).remote(*given) for part in self._parts])
        except ray.exceptions.RayActorError as problem:
            raise IndexProblem(f"a shard cannot be searched; its process ended: {problem}") from problem

    def close(self) -> None:
        """End the actors."""
        for part in self._parts:
            ray.kill(part)
