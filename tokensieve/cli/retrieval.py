"""The commands of retrieval; every one is a thin caller."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from tokensieve.cli import shards as cli_shards
from tokensieve.cli.common import Json, budget, console, print_table
from tokensieve.cli.indexes import At, CrossPath, EncoderPath, Ray, crossed, status

CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Characters that tell a terminal what to do; a passage may hold any."""


def add(app: typer.Typer) -> None:
    """Make these commands part of an application."""
    for name, command in (("search", search), ("bench-index", bench_index)):
        app.command(name)(command)


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
    fuse: Annotated[
        str, typer.Option(help="How words (BM25) count: none, rrf (by ranks), or a share of the score from 0 to 1.")
    ] = "none",
    offset: Annotated[int, typer.Option(min=0, help="How many of the best are passed over.")] = 0,
    min_score: Annotated[float | None, typer.Option(help="Leave out passages of a lower score.")] = None,
    per_document: Annotated[
        bool, typer.Option("--per-document", help="Only the best passage of each document.")
    ] = False,
    cross_encoder: CrossPath = None,
    encoder: EncoderPath = None,
    ray: Ray = None,
    json_: Json = False,
) -> None:
    """Find passages; words that the query was matched with are highlighted."""
    fewer = None if keep is None else budget(keep)
    conditions = None if where is None else _conditions(where)
    how: dict[str, Any] = {"fuse": _fuse(fuse), "offset": offset, "min_score": min_score, "per_document": per_document}
    with status("loading ..."), cli_shards.searched(at, ray, encoder) as library:
        how["cross"] = crossed(cross_encoder)
        (answered,) = library.answer([query], k, where=conditions, keep=fewer, **how)
        found, notes, damaged = answered.results, answered.notes, library.damaged
    _warn(damaged)
    for note in notes:
        typer.echo(note, err=True)
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
        place = hit.place or f"{hit.span[0]}-{hit.span[1]}"
        above = Text(CONTROLS.sub("", hit.context) + "\n", style="dim") if hit.context else Text()
        table.add_row(
            f"{hit.score if hit.cross is None else hit.cross:.2f}",
            Text(f"{CONTROLS.sub('', hit.document)}\n{place}"),
            above + text,
        )
    console().print(table if found else "nothing found")


def bench_index(
    at: At,
    queries: Annotated[Path, typer.Option(help='Lines of {"query": ..., "relevant": [document or passage, ...]}.')],
    full: Annotated[
        bool, typer.Option("--full", help="Encode all passages again and compare with all their vectors.")
    ] = False,
    qrels: Annotated[
        Path | None, typer.Option(help="Judgements in TREC form, by the `id` of queries; instead of `relevant`.")
    ] = None,
    run: Annotated[
        list[Path] | None, typer.Option(help="What another system found, in TREC form; measured beside. Repeat it.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A folder: write what each way finds, in TREC form.")] = None,
    encoder: EncoderPath = None,
    ray: Ray = None,
    json_: Json = False,
) -> None:
    """Measure an index: nDCG, MRR, recall, bytes and latency, against exact search."""
    from tokensieve.retrieval.evaluation import trec
    from tokensieve.retrieval.evaluation.measure import measure, read_queries

    questions, judged = read_queries(queries), None if qrels is None else trec.read_judged(qrels)
    runs = {file.stem: trec.read_run(file) for file in run or ()}
    with cli_shards.searched(at, ray, encoder) as library:
        rows = measure(library, questions, full, judged=judged, runs=runs, out=out)
        _warn(library.damaged)
    if json_:
        typer.echo(json.dumps([asdict(r) for r in rows], indent=2))
        return
    head = ("search", "vectors", "MB", "recall@10 of exact", "nDCG@10", "MRR", "recall@100", "ms, median", "ms, 95%")
    print_table(head, [r.cells for r in rows])


def _fuse(text: str) -> Any:
    """As it is typed; what it may be is said where it is used."""
    try:
        return float(text)
    except ValueError:
        return text


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
