"""What the commands of retrieval do with a collection in shards."""

from __future__ import annotations

from collections.abc import Collection as Several
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from tokensieve.cli.indexes import loaded
from tokensieve.cli.indexes import opened as opened_whole
from tokensieve.cli.progress import bar

if TYPE_CHECKING:
    from tokensieve.retrieval.index.library import Library
    from tokensieve.retrieval.index.recipe import Recipe
    from tokensieve.retrieval.index.searching import Searching
    from tokensieve.retrieval.index.sync import SyncReport
    from tokensieve.retrieval.shards import Collection


FIXED = frozenset({"method", "keep", "codec", "sketch", "overlap"})
"""Parts of a recipe that hold for all of an index."""


def sharded(out: Path) -> bool:
    """Whether a folder holds a collection in shards."""
    from tokensieve.retrieval.shards import SHARDS

    return (out / SHARDS).exists()


def build(
    docs: Path, out: Path, asked: dict[str, Any], count: int | None, ray: str | None, quiet: bool
) -> tuple[SyncReport, dict[str, int], int]:
    """Make or update shards; returns what was done, their size, and how many there are."""
    from tokensieve.retrieval.index.recipe import Recipe
    from tokensieve.retrieval.shards import Shards, mirror
    from tokensieve.retrieval.shards.build import here

    _refuse_whole(out)
    refuse_nothing(docs, Recipe(**{k: v for k, v in asked.items() if k in ("include", "exclude")}))
    with _cluster(ray) as cluster:
        if sharded(out):
            shards = Shards.open(out)
            refuse_change(out, shards.recipe, asked, FIXED | {"encoder"})
            if count not in (None, shards.count):
                raise ValueError(f"{out} has {shards.count} shards; say the same, or choose another --out")
        else:
            shards = Shards.create(out, Recipe(**asked), cluster.cpus() if count is None else count)
        try:
            with _bar(shards.count, quiet) as step:
                report = mirror(shards, docs, cluster.run if cluster else here, step)
        except KeyboardInterrupt:
            typer.echo(
                f"\ninterrupted; {len(shards.built)} of {shards.count} shards in {out} are built, the same command goes on "
                "from there", err=True,
            )  # fmt: skip
            raise SystemExit(130) from None
    return report, shards.size, shards.count


@contextmanager
def opened(at: Path, ray: str | None, encoder: str | None = None) -> Iterator[Collection]:
    """A collection to be searched, here or by actors."""
    from tokensieve.retrieval.shards import Collection
    from tokensieve.retrieval.shards.search import Here

    _refuse_whole(at)
    made = None if encoder is None else loaded(encoder)
    with _cluster(ray) as cluster, Collection.open(at, cluster.Actors if cluster else Here, made) as collection:
        yield collection


@contextmanager
def searched(at: Path, ray: str | None, encoder: str | None = None) -> Iterator[Searching]:
    """What a folder holds, one index or a collection in shards, to be asked."""
    if ray is None and not sharded(at):
        yield opened_whole(at, encoder)
        return
    with opened(at, ray, encoder) as collection:
        yield collection


def refuse_nothing(docs: Path, recipe: Recipe) -> None:
    """Say that there is nothing to index before an index is made."""
    from tokensieve.retrieval.index.sync import refuse_empty
    from tokensieve.retrieval.sources.folder import Folder

    folder = Folder(docs, include=recipe.include, exclude=recipe.exclude)
    refuse_empty(folder, folder.files())


def updated(out: Path, asked: dict[str, Any]) -> Library:
    """An index that takes in what has changed; what was not asked for stays as it was."""
    from dataclasses import replace

    from tokensieve.retrieval.encoders.encoded import lasting

    library = opened_whole(out, asked.get("encoder"))
    refuse_change(out, library.recipe, asked, FIXED)
    changes: dict[str, Any] = {k: lasting(v) if k == "encoder" else v for k, v in asked.items() if k not in FIXED}
    recipe = replace(library.recipe, **changes)
    if recipe != library.recipe:
        library.moved(recipe)
    return library


def refuse_change(out: Path, made: Recipe, asked: dict[str, Any], fixed: Several[str]) -> None:
    """Refuse to bring an index up to date by another recipe than its own."""
    old = asdict(made)
    differ = [k for k in old if k in asked and k in fixed and asked[k] != old[k]]
    if differ:
        was = ", ".join(f"--{k} {'none' if old[k] is None else old[k]}" for k in differ)
        raise ValueError(f"{out} was made with {was}; leave that out, or choose another --out")


def _refuse_whole(out: Path) -> None:
    from tokensieve.retrieval.errors import Incompatible
    from tokensieve.retrieval.index.manifest import MANIFEST

    if (out / MANIFEST).exists():
        raise Incompatible(f"{out} is no collection in shards, but one index; leave out --shards and --ray")


@contextmanager
def _cluster(ray: str | None) -> Iterator[Any]:
    """Ray's side of shards, joined while this lasts; None without Ray."""
    if ray is None:
        yield None
        return
    try:
        from tokensieve.retrieval.shards import cluster
    except ImportError as error:
        raise ValueError(str(error)) from None
    with cluster.joined(ray):
        yield cluster


@contextmanager
def _bar(count: int, quiet: bool) -> Iterator[Any]:
    with bar(quiet, counted=True) as shown:
        task = shown.add_task("shards", total=count)
        yield lambda done, of: shown.update(task, completed=done, total=of)
