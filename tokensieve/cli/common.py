"""What the commands share: tables, the console, budgets as they are typed, and how an interrupted run ends."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON only.")]


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under a head."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(*head, header_style="bold")
    for row in rows:
        table.add_row(*map(escape, row))
    console().print(table)


def console() -> Any:
    """The terminal."""
    from rich.console import Console

    # A pipe or a log has no width of its own; give tables room.
    return Console() if sys.stdout.isatty() else Console(width=180)


def budget(text: str) -> int | float:
    """A budget as it is typed: tokens, or a share."""
    from tokensieve.parts.budget import check

    try:
        value = float(text) if "." in text else int(text)
    except ValueError as error:
        raise ValueError(f"--keep {text!r}: it must be tokens (64) or a share (0.25)") from error
    check(value, "--keep")
    return value


def measured(work: Callable[[], object], out: Path, file: str = "results.json") -> None:
    """Run long work; when it is interrupted, say where it goes on from."""
    try:
        work()
    except KeyboardInterrupt:
        typer.echo(f"\ninterrupted; what is finished is in {out / file}, the same command goes on from there", err=True)
        raise SystemExit(130) from None
