"""The command that says what is installed and whether sieves work on it; a thin caller."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tokensieve.testing.doctor import DoctorReport

MARKS = {"ok": "[green]✓[/]", "failed": "[red]✗[/]", "refused": "[yellow]–[/]"}
UNTESTED = "transformers {} is not among the releases that were tested: {}"


def add(app: typer.Typer) -> None:
    """Make this command part of an application."""
    app.command()(doctor)


def doctor(
    model: Annotated[str | None, typer.Argument(help="A local or hub model to check as well.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...: where the models run.")] = "cpu",
    json_: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    """Say what is installed, and check sieves on tiny models of each kind, and on MODEL; exit code 1 where a check fails."""
    from rich.console import Console

    from tokensieve.sites.model.compatibility import disable_progress_bar
    from tokensieve.testing.doctor import diagnose

    disable_progress_bar()
    with Console(stderr=True).status("looking around") as status:
        report = diagnose(model, device, lambda name: status.update(f"checking {name}"))
    if json_:
        typer.echo(json.dumps(report.as_dict(), indent=2))
    else:
        console = Console() if sys.stdout.isatty() else Console(width=180)
        show(report, console)
    raise typer.Exit(0 if report.ok else 1)


def show(report: DoctorReport, console: Any) -> None:
    """Print a report as tables, and in the end how it stands."""
    from rich.markup import escape
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_row("versions", ", ".join(f"{name} {v or 'not installed'}" for name, v in report.versions.items()))
    releases, own = report.as_dict()["tested_releases"], report.versions["transformers"]
    table.add_row("", "this transformers is tested" if report.tested else UNTESTED.format(own, ", ".join(releases)))
    table.add_row("devices", escape("; ".join(f"{name}, {what}" for name, what in report.devices.items())))
    for i, kernel in enumerate(report.kernels):
        there = "present" if kernel.present else "not present"
        table.add_row(
            "" if i else "attention", f"{kernel.name}: {there}" + (f" ({kernel.note})" if kernel.note else "")
        )
    for i, extra in enumerate(report.extras):
        missing = f"{', '.join(extra.missing)} not installed: {extra.install}"
        table.add_row("" if i else "extras", escape(f"{extra.name}: {missing if extra.missing else 'installed'}"))
    console.print(table)
    table = Table("", "model", "site", "check", "found", header_style="bold")
    for f in report.findings:
        found = escape(f.detail) + (f"\n[bold]{escape(f.advice)}[/]" if f.advice else "")
        table.add_row(MARKS[f.status], escape(f.model), f.site, f.check, found)
    console.print(table)
    counts = {status: sum(f.status == status for f in report.findings) for status in MARKS}
    console.print(", ".join(f"{n} {status}" for status, n in counts.items()))
