"""The command of diffusers' pipelines; a thin caller."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokensieve.cli.common import measured, print_table
from tokensieve.cli.progress import Steps


def add(app: typer.Typer) -> None:
    """Make this command part of an application."""
    app.command("bench-diffusion")(bench_diffusion)


def bench_diffusion(
    model: Annotated[str, typer.Argument(help="A folder or hub name of a diffusers pipeline, or testbed.")],
    methods: Annotated[str, typer.Option(help="Comma-separated methods.")] = "tome,dart,divprune",
    keep: Annotated[str, typer.Option(help="Comma-separated shares of tokens.")] = "0.75,0.5,0.25",
    out: Annotated[Path, typer.Option(help="Where results go; a second run goes on there.")] = Path("out/diffusion"),
    images: Annotated[int, typer.Option(min=1, help="Images of each arm.")] = 8,
    steps: Annotated[int, typer.Option(min=1, help="Steps of each image.")] = 20,
    form: Annotated[str, typer.Option(help="attention or stream.")] = "attention",
    acts: Annotated[str, typer.Option(help="First and last progress at which tokens are spared.")] = "0,1",
    prompts: Annotated[Path | None, typer.Option(help="A file of prompts, one a line.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
) -> None:
    """Compare methods on a pipeline of diffusers: images from the same noise, and what a step costs; resumes."""
    from tokensieve.bench.diffusion.page import page, table
    from tokensieve.bench.diffusion.run import DiffusionConfig, run
    from tokensieve.bench.diffusion.subject import load

    shares = tuple(_numbers(keep, "--keep"))
    bounds = _numbers(acts, "--acts")
    if len(bounds) != 2:
        raise ValueError(f"--acts {acts!r}: two numbers, with a comma between them")
    names = tuple(name.strip() for name in methods.split(",") if name.strip())
    config = DiffusionConfig(names, shares, out, form, (bounds[0], bounds[1]))
    config.arms()  # what is wrong with them is said before anything is loaded
    lines = () if prompts is None else tuple(filter(None, prompts.read_text(encoding="utf-8").splitlines()))

    def work() -> None:
        of = load(model, images, steps, seed, lines, device)
        with Steps(quiet=False) as bar:
            results = run(of, config, bar.step)
        heads, cells = table(results)
        print_table(heads, cells)
        typer.echo(f"\n{page(results, out)}")

    measured(work, out)


def _numbers(text: str, option: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as problem:
        raise ValueError(f"{option} {text!r}: numbers, with commas between them") from problem
