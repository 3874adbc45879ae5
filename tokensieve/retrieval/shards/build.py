"""Build: make the shards of a collection hold what a folder holds, each by a task of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import Tensor

from tokensieve.retrieval.encoders import loading
from tokensieve.retrieval.encoders.encoded import Encoder
from tokensieve.retrieval.encoders.reduce import Frequencies
from tokensieve.retrieval.errors import Locked
from tokensieve.retrieval.index import marks
from tokensieve.retrieval.index.index import Index
from tokensieve.retrieval.index.library import Library
from tokensieve.retrieval.index.manifest import MANIFEST
from tokensieve.retrieval.index.recipe import Recipe
from tokensieve.retrieval.index.sync import SyncReport, bring, refuse_empty, refuse_other
from tokensieve.retrieval.shards.manifest import Shards
from tokensieve.retrieval.sources.folder import Folder
from tokensieve.retrieval.sources.texts import Text
from tokensieve.retrieval.storage import FORMATS, VectorFormat
from tokensieve.retrieval.storage.files import map_tensors, write_tensors

CODEC = "codec.safetensors"


@dataclass(frozen=True)
class Job:
    """What a worker is told: a shard, the files of a folder that it is to hold, and how their texts become vectors.

    Attributes:
        number: of the shard.
        counts: how rare tokens are in the whole collection, for methods that ask.
        unread: see :class:`Folder`.
    """

    number: int
    at: Path
    root: Path
    files: tuple[str, ...]
    recipe: Recipe
    counts: Frequencies | None = None
    unread: frozenset[str] = frozenset()

    @property
    def paths(self) -> list[Path]:
        return [self.root / name for name in self.files]


@dataclass(frozen=True)
class Built:
    """What a worker says of a shard that is complete."""

    number: int
    report: SyncReport
    size: dict[str, int]


Run = Callable[[Callable[[Job], Any], Sequence[Job]], Iterable[Any]]
"""Does all jobs, here or elsewhere, and yields what they give in any order. A job may be done more than once."""


def here(work: Callable[[Job], Any], jobs: Sequence[Job]) -> Iterator[Any]:
    """One job after the other, in this process."""
    return map(work, jobs)


def build(job: Job) -> Built:
    """One shard; what an earlier try has committed is passed over."""
    encoder = _encoder(job.recipe.encoder)
    if (job.at / MANIFEST).exists():
        library = Library.open(job.at, encoder)
    else:
        state = job.at.parent / CODEC
        library = Library.create(job.at, job.recipe, encoder, map_tensors(state) if state.exists() else None)
    try:
        if job.counts is not None:
            library.learn(job.counts)
        report = bring(library, Folder(job.root, unread=set(job.unread)), job.paths)
        return Built(job.number, report, library.index.size)
    finally:
        library.close()


def count(job: Job) -> Frequencies:
    """How rare the tokens of one shard's texts are."""
    with tempfile.TemporaryDirectory() as folder:
        return Library.create(folder, job.recipe, _encoder(job.recipe.encoder)).counted(
            Folder(job.root).texts(job.paths)
        )


def fit(job: Job) -> dict[str, Tensor]:
    """What a codec learns of the first commit that one index of all texts would make."""
    with tempfile.TemporaryDirectory() as folder:
        library = Library.create(folder, job.recipe, _encoder(job.recipe.encoder))
        if job.counts is not None:
            library.learn(job.counts)

        def texts() -> Iterator[Text]:
            for text in Folder(job.root).texts(job.paths):
                if len(library):
                    return
                yield text

        library.put(texts())
        library.close()
        return {k: v.clone() for k, v in library.index.codec.state.items()}


def mirror(
    shards: Shards, root: Path, run: Run = here, step: Callable[[int, int], None] = lambda done, of: None
) -> SyncReport:
    """Make the shards hold what a folder holds; only what has changed is encoded.

    Interrupted, it goes on from there when called again.

    Args:
        step: called with the shards that are complete, and how many there are.

    Raises:
        ValueError: no such folder, one without text, or one that shares no file with what the shards mirror.
        Locked: another process builds them.
    """
    lock = FileLock(shards.folder / "lock", thread_local=False)
    try:
        held = lock.acquire(timeout=0)
    except Timeout as problem:
        raise Locked(f"{shards.folder} is being built by another process; wait for it, or end it first") from problem
    with held:
        folder = Folder(root, shards.folder, shards.recipe.include, shards.recipe.exclude)
        files = folder.files()
        names = [f.relative_to(root).as_posix() for f in files]
        refuse_other(indexed_names(shards), set(names), shards.folder, root)
        refuse_empty(folder, files)
        return _mirror(shards, folder, names, run, step)


def _mirror(
    shards: Shards, folder: Folder, names: Sequence[str], run: Run, step: Callable[[int, int], None]
) -> SyncReport:
    # The workers stand elsewhere.
    at, root, unread = shards.folder.absolute(), folder.root.absolute(), frozenset(folder.unread)
    whole = Job(-1, at, root, tuple(names), shards.recipe, unread=unread)
    own: list[list[str]] = [[] for _ in range(shards.count)]
    for name, number in zip(names, shards.of(names), strict=True):
        own[number].append(name)
    jobs = [replace(whole, number=n, at=whole.at / shards.at(n).name, files=tuple(f)) for n, f in enumerate(own)]
    if shards.recipe.counts:
        counts = sum(run(count, jobs), Frequencies())
        whole, jobs = replace(whole, counts=counts), [replace(job, counts=counts) for job in jobs]
    learns = FORMATS.get(shards.recipe.codec).fit is not VectorFormat.fit
    if learns and not (shards.folder / CODEC).exists():
        for state in run(fit, [whole]):
            write_tensors(shards.folder / CODEC, state)
    total = SyncReport(skipped=folder.passed)
    for done, built in enumerate(run(build, jobs), 1):
        shards.complete(built.number, built.size)
        total += built.report
        step(done, len(jobs))
    return total


def indexed_names(shards: Shards) -> Iterator[str]:
    """Names of the files that built shards mirror."""
    for number in shards.built:
        index = Index.open(shards.at(number))
        for id in index.ids():
            name, _, place = id.rpartition("#")
            if place == "0" and marks.mirrored(index.metadata([id])[0] or {}):
                yield name


@lru_cache(maxsize=1)
def _encoder(source: str | None) -> Encoder:
    """Workers do several jobs."""
    return loading.load_encoder(source)
