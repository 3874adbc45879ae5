"""The commands about vLLM; thin callers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from tokensieve.cli.common import Json, console, print_table

if TYPE_CHECKING:
    from tokensieve.integrations.vllm.check import ServeReport


def add(app: typer.Typer) -> None:
    """Make these commands part of an application."""
    group = typer.Typer(no_args_is_help=True, help="Serve with vLLM under a plan.")
    group.callback()(_group)
    group.command()(check)
    app.add_typer(group, name="vllm")


def _group() -> None:
    """Serve with vLLM under a plan."""


def check(
    model: Annotated[str, typer.Argument(help="A local or hub model; its config is read.")],
    json_: Json = False,
) -> None:
    """Say whether the vLLM that is installed can serve MODEL under a plan, and with which methods; exit code 1 where not."""
    from tokensieve.integrations.vllm.check import check as look

    report = look(model)
    if json_:
        typer.echo(json.dumps(report.as_dict(), indent=2))
    else:
        show(report)
    raise typer.Exit(0 if report.ok else 1)


def show(report: ServeReport) -> None:
    """Print a report."""
    tower = report.tower
    encoder = f"{tower.built} of {tower.depth} blocks are built, {'with' if tower.cls else 'without'} a CLS token"
    unknown = "" if report.known else ", which this vLLM does not have" if report.vllm else ""
    print_table(
        ("", ""),
        [
            ("vLLM", f"{report.vllm}: {report.hooks or 'all that plans hook into is there'}".lstrip(": ")),
            ("model", f"{report.architecture}{unknown}{': ' * bool(report.model)}{report.model}"),
            ("encoder", (tower.blind and f"its attention cannot be read: {tower.blind}") or encoder),
            *((f"positions {name}", why or "served") for name, why in report.positions.items()),
        ],
    )
    print_table(("method", "served"), [(name, why or "yes") for name, why in report.methods.items()])
    served = sum(not why for why in report.methods.values())
    console().print(f"{served} of {len(report.methods)} methods that run at the handoff can be served")
