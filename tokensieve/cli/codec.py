"""The commands of discrete tokenizers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokensieve.cli.common import measured, print_table
from tokensieve.cli.progress import Whole

codec = typer.Typer(no_args_is_help=True, help="Discrete tokenizers: which one, at what cost, on your data.")

DEFAULT = ("vq:16384", "fsq:8,8,8,6,5", "lfq:14", "bsq:14")
"""Four ways to about 14 bits a token."""


def add(app: typer.Typer) -> None:
    """Make these commands part of an application."""
    app.add_typer(codec, name="codec")


@codec.callback()
def _group() -> None:
    pass


@codec.command()
def bench(
    data: Annotated[
        Path | None, typer.Argument(help="A folder of images, or of speech (WAV); generated scenes if not given.")
    ] = None,
    tokenizer: Annotated[
        list[str] | None,
        typer.Option(
            help="A quantizer (vq:16384, fsq:8,5,5,5, lfq:14), a folder that --save wrote, diffusers:PATH, transformers:PATH, or "
            "module:function of your own. Repeat it. Of 14 bits if not given: vq:16384, fsq:8,8,8,6,5, lfq:14, bsq:14."
        ),
    ] = None,
    tokens: Annotated[str, typer.Option(help="Comma-separated budgets: tokens of a signal.")] = "64,128,256",
    out: Annotated[Path, typer.Option(help="Where results go; a second run goes on there.")] = Path("tokensieve-codec"),
    size: Annotated[int, typer.Option(help="Pixels of a side that images are brought to.")] = 64,
    steps: Annotated[int, typer.Option(help="Training steps of each autoencoder, the same for all.")] = 300,
    limit: Annotated[int | None, typer.Option(min=10, help="At most so many files, spread over the folder.")] = None,
    save: Annotated[
        Path | None, typer.Option(help="Write each fitted tokenizer as a folder here; --tokenizer takes it again.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of training, and of what is drawn.")] = 0,
) -> None:
    """Compare tokenizers at equal budgets: rate, distortion, usage, and always PCA, bicubic, VQ, JPEG and WebP; resumes."""
    try:
        counts = tuple(int(t) for t in tokens.split(","))
    except ValueError as problem:
        raise ValueError(f"--tokens {tokens!r}: numbers, with commas between them") from problem
    if min(counts) < 1:
        raise ValueError(f"--tokens {tokens!r}: each must be at least 1")
    asked = tuple(tokenizer or DEFAULT)

    def work() -> None:
        with Whole("reading") as bar:  # before anything heavy is imported
            from tokensieve.bench.codec.page import page
            from tokensieve.bench.codec.run import Config, run
            from tokensieve.bench.codec.table import about_features, said, table
            from tokensieve.bench.codec.verdict import budgets, verdict

            results = run(Config(data, asked, counts, out, size, steps, seed, limit, save), bar.step)
        heads, cells, _ = table(results["rows"], results["test"])
        print_table(heads, cells)
        typer.echo(about_features(results))
        for line in said(results["rows"]):
            typer.echo(f"while fitting {line}")
        for name, why in list(results["skipped"].items())[:5]:
            typer.echo(f"left out: {name}: {why}", err=True)
        for bits, what in sorted(budgets(results["rows"]).items()):
            typer.echo(f"\nAt up to {bits / 8:.0f} bytes a signal ({what}):")
            for line in verdict(results["rows"], bits):
                typer.echo(f"  {line}")
        typer.echo(f"\n{page(results, out)}")

    measured(work, out)
