"""The commands that list: methods, signals, vector formats, sketches, stores, encoders, published systems, architectures."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokensieve.cli.common import Json, print_table

if TYPE_CHECKING:
    from tokensieve.core.method_registry import Card
    from tokensieve.core.registry import Registry


def add(app: typer.Typer) -> None:
    """Make these commands part of an application."""
    for command in (methods, signals, formats, sketches, stores, encoders, systems, models):
        app.command()(command)


def methods(
    names: Annotated[list[str] | None, typer.Argument(help="Methods to tell all about, with their options.")] = None,
    site: Annotated[
        str | None,
        typer.Option(help="Only those that run there: encoder, handoff, prefill, focus, cross, cache, vectors."),
    ] = None,
    family: Annotated[str | None, typer.Option(help="Only this family.")] = None,
    json_: Json = False,
) -> None:
    """List the registered methods, or tell what options some have."""
    from tokensieve.core.method_registry import list_methods, method_card

    if names and (site or family):
        raise ValueError("--site and --family choose among all methods; they do not go with names")
    cards = [method_card(name) for name in names or list_methods(site=site, family=family)]
    if json_:
        typer.echo(json.dumps([asdict(c) for c in cards], indent=2))
        return
    if names:
        for c in cards:
            _print_card(c)
        return
    rows = [(c.name, c.family, "/".join(c.sites), ", ".join(map(str, c.systems)), c.summary) for c in cards]
    print_table(("name", "family", "sites", "systems", "what it does"), rows)


def _print_card(card: Card) -> None:
    typer.echo(f"{card.name} ({card.family}; at {', '.join(card.sites)}): {card.summary}")
    typer.echo(f"reads {', '.join(card.needs) or 'no signal but the features'}")
    if not card.options:
        typer.echo("no options")
        return
    rows = [(o.name, o.type, o.range, o.unit, repr(o.default), o.meaning) for o in card.options.values()]
    print_table(("option", "type", "range", "unit", "default", "meaning"), rows)


def signals(json_: Json = False) -> None:
    """List the signals that methods read: shapes, meaning, what stands in, and which sites give them."""
    from tokensieve.core.signal_table import SIGNALS

    rows = [SIGNALS.get(name) for name in SIGNALS]
    if json_:
        told = [{k: v for k, v in asdict(row).items() if k != "compute"} for row in rows]
        typer.echo(json.dumps(told, indent=2))
        return
    print_table(
        ("signal", "shape", "what it says", "stand-ins", "sites"),
        [(s.name, s.shape, s.meaning, ", ".join(s.instead), ", ".join(s.sites)) for s in rows],
    )


def sketches(json_: Json = False) -> None:
    """List the sketches by which an index seeks candidates."""
    from tokensieve.retrieval.scoring.sketch import SKETCHES

    _print_registry(SKETCHES, "sketch", json_)


def stores(json_: Json = False) -> None:
    """List the stores beside the index, and what installs those whose client is an extra."""
    from tokensieve.retrieval.stores import STORES

    _print_registry(STORES, "store", json_)


def encoders(json_: Json = False) -> None:
    """List the encoders that have a name of their own."""
    from tokensieve.retrieval.encoders.loading import ENCODERS

    _print_registry(ENCODERS, "encoder", json_)


def _print_registry(registry: Registry[Any], kind: str, json_: bool) -> None:
    """Name, extra and summary of all that is registered."""
    from tokensieve.extras import install

    entries = [registry.entry(name) for name in registry.names()]
    rows = [(e.name, install(e.facts["extra"]) if "extra" in e.facts else "", e.summary) for e in entries]
    if json_:
        typer.echo(json.dumps([{"name": n, "install": i, "summary": s} for n, i, s in rows], indent=2))
        return
    print_table((kind, "installed by", "what it is"), rows)


def formats(json_: Json = False) -> None:
    """List the vector formats of an index, and what a vector of 128 dimensions takes in each."""
    from tokensieve.retrieval.storage import FORMATS, list_formats, vector_format

    rows = [(name, vector_format(name, 128).bytes_per_token, FORMATS.entry(name).summary) for name in list_formats()]
    if json_:
        typer.echo(json.dumps([{"name": n, "bytes": b, "summary": s} for n, b, s in rows], indent=2))
        return
    print_table(("format", "bytes of 128 dimensions", "what it is"), [(n, str(b), s) for n, b, s in rows])


def systems(
    family: Annotated[str | None, typer.Option(help="Only this family.")] = None,
    tier: Annotated[int | None, typer.Option(min=1, max=4, help="Only this tier (1 is the core).")] = None,
    json_: Json = False,
) -> None:
    """List the published systems, what answers to each here, and its last recorded check."""
    from tokensieve.catalog import table

    record = table.record()["rows"]
    rows = table.systems(family, tier)
    if json_:
        full = [asdict(s) | {"entries": table.entries(s.id), "record": record.get(str(s.id))} for s in rows]
        typer.echo(json.dumps(full, indent=2))
        return
    lines = [
        (str(s.id), s.name, s.family, str(s.tier), ", ".join(table.entries(s.id)), *_checked(record, s.id))
        for s in rows
    ]
    print_table(("id", "system", "family", "tier", "entry", "status", "numbers"), lines)


def models(
    names: Annotated[
        list[str] | None, typer.Argument(help="Model types to check now; the last record if none.")
    ] = None,
    encoders: Annotated[
        bool, typer.Option(help="Encoders of images, sound and text, in place of vision-language models.")
    ] = False,
    diffusers: Annotated[bool, typer.Option("--diffusers", help="Classes of diffusers instead.")] = False,
    json_: Json = False,
) -> None:
    """List the architectures that a sieve runs on, what was checked of each, and why others are refused."""
    if diffusers:
        _denoisers(names, json_)
        return
    from tokensieve.bench.compat import encoders as towers
    from tokensieve.bench.compat import matrix

    if encoders:
        rows = towers.matrix(names) if names else towers.recorded()
    else:
        rows = matrix.matrix(names) if names else matrix.recorded()
    if json_:
        typer.echo(json.dumps([asdict(row) for row in rows], indent=2))
        return
    print_table(
        ("architecture", "status", "checked", "note"), [(r.name, r.status, ", ".join(r.checked), r.why) for r in rows]
    )


def _denoisers(names: list[str] | None, json_: bool) -> None:
    from tokensieve.bench.compat import denoiser_matrix

    rows = denoiser_matrix.matrix(names) if names else denoiser_matrix.recorded()
    if json_:
        typer.echo(json.dumps([asdict(row) for row in rows], indent=2))
        return
    print_table(
        ("class", "status", "attention", "stream", "note"),
        [
            (
                r.name,
                r.status,
                *(", ".join(r.checked.get(f, ())) for f in ("attention", "stream")),
                "; ".join(r.why.values()),
            )
            for r in rows
        ],
    )


def _checked(record: dict[str, Any], system: int) -> tuple[str, str]:
    row = record.get(str(system))
    if row is None:
        return "missing", ""
    return row["status"], ", ".join(f"{k} {v}" for k, v in row["numbers"].items())
