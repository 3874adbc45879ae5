"""The commands of tokenizers, as one group: ``tokensieve tokenizer COMMAND``."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from tokensieve.cli.common import Json, print_table

SHOWN = 20
"""Tokens named on the screen; --json names all."""

group = typer.Typer(no_args_is_help=True, help="What text costs in whose tokens: measure, audit, train, extend, move.")


def add(app: typer.Typer) -> None:
    """Make these commands part of an application."""
    group.command()(audit)
    app.add_typer(group, name="tokenizer")


def audit(
    source: Annotated[str, typer.Argument(help="A folder, a tokenizer.json, a hub name or a tiktoken name.")],
    json_: Json = False,
) -> None:
    """Find the tokens that no text reaches."""
    from tokensieve.text.loading import open_tokenizer
    from tokensieve.text.reach import reach
    from tokensieve.text.vocabulary import Vocabulary

    tokenizer = open_tokenizer(source)
    vocabulary = Vocabulary.of(tokenizer)
    found = reach(tokenizer, vocabulary)
    if json_:
        typer.echo(json.dumps(asdict(found)))
        return
    rows = [
        (name, f"{len(ids):,}", ", ".join(repr(vocabulary.strings[i]) for i in ids[:SHOWN] if vocabulary.strings[i]))
        for name, ids in asdict(found).items()
    ]
    print_table(("tokens", "count", "the first of them"), rows)
