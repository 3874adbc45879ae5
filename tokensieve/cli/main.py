"""The command line; every command is a thin caller of one function."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from tokensieve import __version__
from tokensieve.cli import (
    advise,
    bench,
    catalog,
    codec,
    diffusion,
    doctor,
    encoders,
    harnesses,
    indexing,
    prompts,
    real,
    retrieval,
    serving,
    tokenizer,
    upkeep,
    vllm,
)

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="Spend fewer tokens."
)
for group in (
    advise, bench, catalog, codec, diffusion, doctor, encoders, harnesses, indexing, prompts, real, retrieval, serving,
    tokenizer, upkeep, vllm,
):  # fmt: skip
    group.add(app)


def main() -> None:
    """Run a command; what cannot be done is one line on stderr and exit code 2."""
    try:
        app()
    except Exception as error:
        # Asked for here alone: what an index is made of takes longer to import than --help may take.
        from tokensieve.retrieval.errors import IndexProblem

        if not isinstance(error, (ValueError, OSError, IndexProblem)):
            raise
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
