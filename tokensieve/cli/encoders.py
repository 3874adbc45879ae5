"""The command that looks for an encoder's plan; a thin caller."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tokensieve.cli.common import Json, budget, console, measured, print_table


def add(app: typer.Typer) -> None:
    """Make this command part of an application."""
    app.command("bench-encoder")(bench_encoder)


def bench_encoder(
    model: Annotated[str, typer.Argument(help="An encoder of images, sound or texts: a folder or a hub name.")],
    inputs: Annotated[Path, typer.Option(help="A folder of images, wav files or texts (or one file, a text a line).")],
    fidelity: Annotated[
        float, typer.Option(help="What has to stay by the measure, at the lower end of its interval.")
    ] = 0.99,
    measure: Annotated[str, typer.Option(help="cosine, neighbours, tokens, answer or wer.")] = "cosine",
    labels: Annotated[
        Path | None, typer.Option(help="A CSV file of name and label, which count in their place.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where table, plot, page and plan go.")] = Path("out/encoder"),
    methods: Annotated[str | None, typer.Option(help="Try these methods only, comma-separated. [all]")] = None,
    keep: Annotated[str, typer.Option(help="Shares of the tokens that stay at the end.")] = "0.5,0.75,0.25,0.9",
    minutes: Annotated[float, typer.Option(help="Of asking, over all sittings.")] = 20.0,
    batch: Annotated[int, typer.Option(help="Inputs at once.")] = 8,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many inputs.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    seed: Annotated[int, typer.Option(help="For the order of inputs, and methods that draw.")] = 0,
    json_: Json = False,
) -> None:
    """Find the setting of an encoder that is fastest within a loss, on your inputs; or say that none is faster; resumes."""
    from rich.console import Console

    from tokensieve.planner.encoders.bench import bench_encoder as look

    shares = [budget(k) for k in keep.split(",")]
    if not all(isinstance(share, float) for share in shares):
        raise ValueError(f"--keep {keep}: of an encoder's tokens give shares, such as 0.5")
    options: dict[str, Any] = {
        "fidelity": fidelity, "measure": measure, "labels": labels, "out": out, "minutes": minutes, "batch": batch,
        "limit": limit, "device": device, "seed": seed, "shares": shares,
    }  # fmt: skip
    if methods is not None:
        options["methods"] = [m.strip() for m in methods.split(",") if m.strip()]

    def run() -> None:
        made = look(model, inputs, console=Console(stderr=True, quiet=json_ or not sys.stderr.isatty()), **options)
        if json_:
            typer.echo(json.dumps(made.to_json(), indent=2))
            return
        names = list(dict.fromkeys(what for row in made.rows for what in row.kept))
        table = [
            (r.key, f"{r.time:.3f}", *(f"{r.kept[n].share:.4f} ({r.kept[n].low:.3f})" if n in r.kept else "" for n in names),
             f"{r.tokens[0]:.0f} to {r.tokens[1]:.0f}", f"{r.packed:.1f}")
            for r in made.rows
        ]  # fmt: skip
        if table:
            print_table(("plan", "time, share", *(f"{n} (at least)" for n in names), "tokens", "packed"), table)
        console().print(made.sentence, markup=False, highlight=False, soft_wrap=True)
        for why in made.skipped:
            console().print(f"skipped  {why}", markup=False, highlight=False, soft_wrap=True)
        plan = "" if made.plan is None else f"\nplan     {out / 'plan.json'}"
        console().print(f"page     {out / 'encoder.html'}{plan}", highlight=False)

    measured(run, out, "search.json")
