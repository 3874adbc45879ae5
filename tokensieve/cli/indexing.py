"""The command that makes an index of a folder, and brings it up to date."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokensieve.cli import shards as cli_shards
from tokensieve.cli.common import Json, budget
from tokensieve.cli.indexes import At, EncoderPath, Ray, loaded, opened, status
from tokensieve.cli.progress import bar

if TYPE_CHECKING:
    from tokensieve.retrieval.index.estimate import IndexCost
    from tokensieve.retrieval.index.sync import SyncReport

MUCH = 2 << 20
"""Bytes of new files from which on it is said beforehand what indexing them will cost."""
SHOWN = 20
"""Skipped files and folders named on the screen; --json names all."""


def add(app: typer.Typer) -> None:
    """Make the command part of an application."""
    app.command("index")(index)
    app.command("reindex")(reindex)


def index(
    docs: Annotated[Path, typer.Argument(help="A folder of text, Markdown, HTML, notebooks, code and documents.")],
    out: Annotated[Path, typer.Option(help="The index; one that is there takes in what has changed.")],
    keep: Annotated[str | None, typer.Option(help="Vectors per passage, or a share of them; 0.5 if new.")] = None,
    method: Annotated[
        str | None,
        typer.Option(help="What makes them fewer: `tokensieve methods --site vectors`; pool if new."),
    ] = None,
    codec: Annotated[
        str | None, typer.Option(help="How vectors are stored; `tokensieve formats` lists them; binary if new.")
    ] = None,
    sketch: Annotated[
        str | None,
        typer.Option(
            help="What candidates are found by: signs (if new), pooled, coarse, mean or fde; none to score all passages."
        ),
    ] = None,
    overlap: Annotated[
        int | None,
        typer.Option(min=0, help="Characters of the passage before that each begins with, at most; 0 if new."),
    ] = None,
    include: Annotated[list[str] | None, typer.Option(help="Only files of this pattern, as in .gitignore.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="No files of this pattern, as in .gitignore.")] = None,
    encoder: EncoderPath = None,
    shards: Annotated[
        int | None, typer.Option(min=1, help="Make a collection of so many indexes; one for each CPU with --ray.")
    ] = None,
    ray: Ray = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what it would cost: passages, bytes, minutes.")
    ] = False,
    json_: Json = False,
) -> None:
    """Make an index of a folder, or bring one up to date; only what has changed is encoded.

    Options that are not given are those of the index.
    """
    given: dict[str, Any] = {
        "method": method, "codec": codec, "overlap": overlap, "keep": None if keep is None else budget(keep),
        "include": None if include is None else tuple(include), "exclude": None if exclude is None else tuple(exclude),
        "encoder": encoder,
    }  # fmt: skip
    asked = {k: v for k, v in given.items() if v is not None}
    if sketch is not None:
        asked["sketch"] = None if sketch == "none" else sketch
    if dry_run or (shards is None and ray is None and not json_):
        cost = _estimated(docs, out, asked, dry_run)
        if dry_run:
            told = json.dumps(asdict(cost) if cost else {}) if json_ else str(cost or "nothing new; nothing to encode")
            typer.echo(told)
            return
        if cost:
            typer.echo(str(cost), err=True)
    if shards is not None or ray is not None or cli_shards.sharded(out):
        report, size, count = cli_shards.build(docs, out, asked, shards, ray, json_)
        what = f"{count} shards, {report.passages:,} passages"
    else:
        report, size = _whole(docs, out, asked, json_)
        what = f"{report.passages:,} passages"
    if json_:
        typer.echo(json.dumps(asdict(report) | size, indent=2))
        return
    each, disk = size["vector_bytes"] / max(size["vectors"], 1), size["bytes"] / 1e6
    typer.echo(
        f"{out}: {what}, {size['vectors']:,} vectors of {each:.0f} bytes, {disk:.1f} MB on disk\n"
        f"{report.written:,} files written, {report.unchanged:,} unchanged, {report.removed:,} removed"
    )
    for part in report.repaired:
        typer.echo(f"repaired: {part}")
    _listed("skipped", report.skipped)
    _listed("read without some of it", report.left_out)
    if report.unread:
        share = sum(report.unread.values()) / len(report.unread)
        typer.echo(
            f"{share:.0%} of the tokens of {len(report.unread)} files are unknown to the encoder, such as of "
            f"{next(iter(report.unread))}; they will hardly be found: give --encoder one of their language"
        )


def reindex(
    at: At,
    out: Annotated[Path, typer.Option(help="The new index; one that was interrupted goes on.")],
    encoder: EncoderPath = None,
    keep: Annotated[str | None, typer.Option(help="Vectors per passage, or a share; as it was if not given.")] = None,
    method: Annotated[str | None, typer.Option(help="What makes them fewer.")] = None,
    codec: Annotated[str | None, typer.Option(help="How vectors are stored.")] = None,
    json_: Json = False,
) -> None:
    """Make another index of the texts that one holds, by another encoder or codec; the files are not needed."""
    from dataclasses import replace

    from tokensieve.retrieval.index.again import reindex
    from tokensieve.retrieval.index.library import Library
    from tokensieve.retrieval.index.manifest import MANIFEST

    given = {"encoder": encoder, "method": method, "codec": codec, "keep": None if keep is None else budget(keep)}
    asked: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
    with _Progress(json_) as progress:
        source = opened(at)
        if (out / MANIFEST).exists():
            target = cli_shards.updated(out, asked)
        else:
            recipe = replace(source.recipe, **asked)
            target = Library.create(out, recipe, loaded(recipe.encoder))
        try:
            passages = reindex(source, target, lambda done, of, n: progress.step(done, of, n, target.read.total()))
        finally:
            target.close()
    typer.echo(json.dumps(target.index.size) if json_ else f"{out}: {passages:,} passages, as they were cut in {at}")


def _listed(what: str, named: dict[str, str]) -> None:
    """Files and why, the first of them."""
    if not named:
        return
    typer.echo(f"{len(named)} {what}:")
    for name, why in list(named.items())[:SHOWN]:
        typer.echo(f"  {name}: {why}")
    if len(named) > SHOWN:
        typer.echo(f"  and {len(named) - SHOWN} more; --json names them")


def _whole(docs: Path, out: Path, asked: dict[str, Any], quiet: bool) -> tuple[SyncReport, dict[str, int]]:
    """Make or update one index; returns what was done, and its size."""
    from tokensieve.retrieval.index.library import Library
    from tokensieve.retrieval.index.manifest import MANIFEST
    from tokensieve.retrieval.index.recipe import Recipe
    from tokensieve.retrieval.index.sync import mirror

    with _Progress(quiet) as progress:
        if (out / MANIFEST).exists():
            library = cli_shards.updated(out, asked)
        else:
            recipe = Recipe(**asked)
            cli_shards.refuse_nothing(docs, recipe)
            library = Library.create(out, recipe, loaded(recipe.encoder))
        try:
            report = mirror(
                library, docs, lambda files, of, passages: progress.step(files, of, passages, library.read.total())
            )
        except KeyboardInterrupt:
            typer.echo(
                f"\ninterrupted; {len(library)} passages are in {out}, the same command goes on from there", err=True
            )
            raise SystemExit(130) from None
        finally:
            library.close()
    return report, library.index.size


def _estimated(docs: Path, out: Path, asked: dict[str, Any], always: bool) -> IndexCost | None:
    """What files that are not in the index will cost, told where that is much; None where it is little."""
    from tokensieve.retrieval.index.library import Library
    from tokensieve.retrieval.index.manifest import MANIFEST
    from tokensieve.retrieval.index.recipe import Recipe
    from tokensieve.retrieval.index.sync import indexed_names
    from tokensieve.retrieval.shards import Shards
    from tokensieve.retrieval.shards.build import indexed_names as in_shards
    from tokensieve.retrieval.sources.folder import Folder

    recipe, known = Recipe(**asked), set()
    if (out / MANIFEST).exists():
        library = Library.open(out)
        recipe, known = library.recipe, indexed_names(library)
    elif cli_shards.sharded(out):
        held = Shards.open(out)
        recipe, known = held.recipe, set(in_shards(held))
    folder = Folder(docs, out, recipe.include, recipe.exclude)
    new = [f for f in folder.files() if f.relative_to(docs).as_posix() not in known]
    if not new or (not always and sum(f.stat().st_size for f in new if f.is_file()) < MUCH):
        return None
    cli_shards.refuse_nothing(docs, recipe)
    from tokensieve.retrieval.index.estimate import index_cost

    with status("looking at the files ..."):
        cost = index_cost(recipe, docs, loaded(recipe.encoder), known)
    return cost if cost.passages else None


class _Progress:
    """A bar of files; the passages encoded so far, tokens per second, and the time left."""

    def __init__(self, quiet: bool) -> None:
        said = "{task.fields[passages]:,} passages, {task.fields[rate]:,} tokens a second,"
        self._bar = bar(quiet, counted=True, said=said)
        self._task = self._bar.add_task("files", total=None, passages=0, rate=0)
        self._passages, self._begun = 0, time.monotonic()

    def __enter__(self) -> _Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.stop()

    def step(self, files: int, of: int, passages: int, tokens: int) -> None:
        self._passages += passages
        rate = int(tokens / max(time.monotonic() - self._begun, 1))
        self._bar.update(self._task, completed=files, total=of, passages=self._passages, rate=rate)
