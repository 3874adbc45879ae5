"""The commands of retrieval; every one is a thin caller."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokensieve.cli import shards as cli_shards
from tokensieve.cli.common import Json, budget, console, print_table
from tokensieve.extras import install

if TYPE_CHECKING:
    from tokensieve.retrieval.index.library import Library
    from tokensieve.retrieval.index.recipe import Recipe
    from tokensieve.retrieval.index.sync import SyncReport

Ray = Annotated[
    str | None,
    typer.Option(help="A Ray cluster that works on shards: its address, or 'local' for processes of this machine."),
]
At = Annotated[Path, typer.Argument(help="The folder of an index.")]
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Characters that tell a terminal what to do; a passage may hold any."""
SHOWN = 20
"""Skipped files and folders named on the screen; --json names all."""


def add(app: typer.Typer) -> None:
    """Make these commands part of an application."""
    for name, command in (("index", index), ("search", search), ("bench-index", bench_index), ("serve", serve)):
        app.command(name)(command)


def index(
    docs: Annotated[Path, typer.Argument(help="A folder of text, Markdown, HTML and code.")],
    out: Annotated[Path, typer.Option(help="The index; one that is there takes in what has changed.")],
    keep: Annotated[str, typer.Option(help="Vectors per passage, or a share such as 0.5.")] = "1.0",
    method: Annotated[
        str, typer.Option(help="What makes them fewer: `tokensieve methods --site vectors`.")
    ] = "agglomerative",
    codec: Annotated[str, typer.Option(help="How vectors are stored; `tokensieve formats` lists them.")] = "int8",
    sketch: Annotated[
        str, typer.Option(help="What candidates are found by: pooled, mean or fde; none to score all passages.")
    ] = "pooled",
    encoder: Annotated[
        str | None, typer.Option(help="A model's folder or hub name; the embedded MiniLM if not given.")
    ] = None,
    shards: Annotated[
        int | None, typer.Option(min=1, help="Make a collection of so many indexes; one for each CPU with --ray.")
    ] = None,
    ray: Ray = None,
    json_: Json = False,
) -> None:
    """Make an index of a folder, or bring one up to date; only what has changed is encoded."""
    from tokensieve.retrieval.index.recipe import Recipe
    from tokensieve.sites.model.compatibility import disable_progress_bar

    recipe = Recipe(encoder, method, budget(keep), codec, None if sketch == "none" else sketch)
    disable_progress_bar()
    if shards is not None or ray is not None or cli_shards.sharded(out):
        report, size, count = cli_shards.build(docs, out, recipe, shards, ray, json_)
        what = f"{count} shards, {report.passages:,} passages"
    else:
        report, size = _whole(docs, out, recipe, json_)
        what = f"{report.passages:,} passages"
    if json_:
        typer.echo(json.dumps(asdict(report) | size, indent=2))
        return
    each, disk = size["vector_bytes"] / max(size["vectors"], 1), size["bytes"] / 1e6
    typer.echo(
        f"{out}: {what}, {size['vectors']:,} vectors of {each:.0f} bytes, {disk:.1f} MB on disk\n"
        f"{report.written:,} files written, {report.unchanged:,} unchanged, {report.removed:,} removed"
    )
    if report.skipped:
        typer.echo(f"{len(report.skipped)} skipped:")
        for name, why in list(report.skipped.items())[:SHOWN]:
            typer.echo(f"  {name}: {why}")
        if len(report.skipped) > SHOWN:
            typer.echo(f"  and {len(report.skipped) - SHOWN} more; --json names them")


def search(
    at: At,
    query: Annotated[str, typer.Argument(help="What to look for, in your own words.")],
    k: Annotated[int, typer.Option("-k", min=1, help="How many passages.")] = 5,
    keep: Annotated[
        str | None, typer.Option(help="Rank the 50 best again by fewer of their vectors: a number, or a share.")
    ] = None,
    where: Annotated[
        str | None, typer.Option(help='Only passages of these metadata, as JSON: {"suffix": [".md", ".txt"]}.')
    ] = None,
    ray: Ray = None,
    json_: Json = False,
) -> None:
    """Find passages; words that the query was matched with are highlighted."""
    fewer = None if keep is None else budget(keep)
    conditions = None if where is None else _conditions(where)
    if ray is not None or cli_shards.sharded(at):
        with cli_shards.opened(at, ray) as collection:
            found, damaged = collection.search(query, k, conditions, fewer), collection.damaged
    else:
        library = _open(at)
        found, damaged = library.search(query, k, conditions, fewer), library.index.damaged
    _warn(damaged)
    if json_:
        typer.echo(json.dumps([asdict(f) | {"highlights": f.highlights} for f in found], indent=2, ensure_ascii=False))
        return
    from rich.table import Table
    from rich.text import Text

    table = Table("score", "where", "passage", header_style="bold", show_lines=True)
    for hit in found:
        text = Text(CONTROLS.sub("\N{REPLACEMENT CHARACTER}", hit.text))
        for a, b in hit.highlights:
            text.stylize("bold reverse", a, b)
        table.add_row(f"{hit.score:.2f}", Text(f"{CONTROLS.sub('', hit.document)}\n{hit.span[0]}-{hit.span[1]}"), text)
    console().print(table if found else "nothing found")


def bench_index(
    at: At,
    queries: Annotated[Path, typer.Option(help='Lines of {"query": ..., "relevant": [document or passage, ...]}.')],
    full: Annotated[
        bool, typer.Option("--full", help="Encode all passages again and compare with all their vectors.")
    ] = False,
    json_: Json = False,
) -> None:
    """Measure an index: nDCG, MRR, recall, bytes and latency, against exact search."""
    from tokensieve.retrieval.evaluation.measure import measure, read_queries

    library = _open(at)
    rows = measure(library, read_queries(queries), full)
    _warn(library.index.damaged)
    if json_:
        typer.echo(json.dumps([asdict(r) for r in rows], indent=2))
        return
    head = ("search", "vectors", "MB", "recall@10 of exact", "nDCG@10", "MRR", "recall@100", "ms, median", "ms, 95%")
    print_table(head, [r.cells for r in rows])


def serve(
    at: At,
    host: Annotated[
        str,
        typer.Option(
            help="The address to listen at; at 127.0.0.1 only this machine reaches it, at 0.0.0.0 others too."
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port to listen at.")] = 8000,
    token_file: Annotated[
        Path | None, typer.Option(help="A file that holds a token; requests must then carry it.")
    ] = None,
    body: Annotated[int, typer.Option(min=1, help="MB of a request's body at most.")] = 64,
) -> None:
    """Serve an index over HTTP, with a page to search it by."""
    try:
        import uvicorn

        from tokensieve.retrieval.service import application
        from tokensieve.retrieval.service.guard import LOOPBACK
    except ImportError as error:
        raise ValueError(f"{error.name} is not installed; {install('serve')}") from None

    token = token_file.read_text(encoding="utf-8").strip() if token_file else None
    if token == "" or (token is None and host not in LOOPBACK):
        raise ValueError(f"--host {host} is seen by other machines: give a --token-file that holds a token" if token is None
                         else f"{token_file} is empty; it must hold a token")  # fmt: skip
    app = application(_open(at), token, LOOPBACK if host in LOOPBACK else None, body << 20)
    typer.echo(f"http://{f'[{host}]' if ':' in host else host}:{port}  (stop with Ctrl-C)")
    uvicorn.run(app, host=host, port=port, log_level="warning", server_header=False, limit_concurrency=100)


def _whole(docs: Path, out: Path, recipe: Recipe, quiet: bool) -> tuple[SyncReport, dict[str, int]]:
    """Make or update one index; returns what was done, and its size."""
    from tokensieve.retrieval.index.library import Library
    from tokensieve.retrieval.index.snapshot import MANIFEST
    from tokensieve.retrieval.index.sync import mirror

    if (out / MANIFEST).exists():
        library = _open(out)
        cli_shards.refuse_change(out, library.recipe, recipe)
    else:
        cli_shards.refuse_nothing(docs)
        library = Library.create(out, recipe)
    try:
        with _Progress(quiet) as progress:
            report = mirror(library, docs, progress.step)
    except KeyboardInterrupt:
        typer.echo(
            f"\ninterrupted; {len(library)} passages are in {out}, the same command goes on from there", err=True
        )
        raise SystemExit(130) from None
    finally:
        library.close()
    return report, library.index.size


def _conditions(where: str) -> dict[str, Any]:
    """Conditions as they are typed."""
    try:
        return json.loads(where)
    except json.JSONDecodeError as problem:
        raise ValueError(f'--where {where!r}: no JSON ({problem}); an example is {{"suffix": ".md"}}') from problem


def _warn(damaged: list[str]) -> None:
    """Name what was not searched."""
    for part in damaged:
        typer.echo(f"damaged, not searched: {part}", err=True)


def _open(at: Path) -> Library:
    from tokensieve.retrieval.index.library import Library
    from tokensieve.sites.model.compatibility import disable_progress_bar

    disable_progress_bar()
    return Library.open(at)


class _Progress:
    """A bar of files, and the passages encoded so far."""

    def __init__(self, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (
            TextColumn("files"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[passages]} passages"),
        )
        self._bar = Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), disable=quiet)
        self._task = self._bar.add_task("", total=None, passages=0)
        self._passages = 0

    def __enter__(self) -> _Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.stop()

    def step(self, files: int, of: int, passages: int) -> None:
        self._passages += passages
        self._bar.update(self._task, completed=files, total=of, passages=self._passages)
