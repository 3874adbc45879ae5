"""The commands that measure and show: demo, bench, show."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokensieve.cli.common import budget, console, measured


def add(app: typer.Typer) -> None:
    """Make these commands part of an application."""
    for command in (demo, bench, show):
        app.command()(command)


def demo(out: Annotated[Path, typer.Option(help="Where results go.")] = Path("tokensieve-demo")) -> None:
    """Measure every method on the packaged model: table, plot and a page with pictures, in minutes."""
    from tokensieve.bench import session

    measured(lambda: session.demo(out, console()), out)


def bench(
    model: Annotated[str, typer.Argument(help="A local or hub vision-language model, or 'testbed'.")] = "testbed",
    methods: Annotated[
        str, typer.Option(help="Comma-separated names; `tokensieve methods` lists them.")
    ] = "visionzip,divprune",
    keep: Annotated[str, typer.Option(help="Comma-separated budgets: tokens, or shares such as 0.25.")] = "192,64",
    out: Annotated[Path, typer.Option(help="Where results go.")] = Path("tokensieve-bench"),
    testbed: Annotated[bool, typer.Option("--testbed", help="Ask the testbed's held-out questions.")] = False,
    which: Annotated[str, typer.Option("--set", help="Which of them: scenes, clips, pairs or anyres.")] = "scenes",
    images: Annotated[Path | None, typer.Option(help="Ask about the images of a folder instead.")] = None,
    question: Annotated[str, typer.Option(help="What to ask about each image of --images.")] = "Describe the image.",
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many questions (testbed: 300).")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Prompts per batch.")] = 20,
    new_tokens: Annotated[int | None, typer.Option(min=1, help="Answer tokens at most (testbed 4, images 16).")] = None,
    seed: Annotated[int, typer.Option(help="For methods that draw, and for the choice of questions.")] = 0,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
) -> None:
    """Compare methods and budgets on a model: accuracy or agreement, tokens, FLOPs, memory, times; resumes."""
    from tokensieve.bench import session
    from tokensieve.bench.data import SETS

    if testbed == (images is not None):
        raise ValueError("say what to ask: either --testbed or --images DIR")
    if which not in SETS:
        raise ValueError(f"--set {which}: it must be one of {', '.join(SETS)}")
    if images is not None and which != "scenes":
        raise ValueError(
            f"--set {which} chooses among the testbed's questions; it goes with --testbed, not with --images"
        )
    names = [n.strip() for n in methods.split(",") if n.strip()]
    budgets = [budget(k) for k in keep.split(",")]
    rest = (which, images, question, limit, batch, seed, dtype, device, new_tokens)
    asked = session.BenchConfig(model, names, budgets, out, *rest)
    measured(lambda: session.bench(asked, console()), out)


def show(
    image: Annotated[Path, typer.Argument(help="An image file.")],
    method: Annotated[str, typer.Option(help="A method's name.")] = "visionzip",
    keep: Annotated[str, typer.Option(help="Tokens, or a share such as 0.25.")] = "64",
    model: Annotated[str, typer.Option(help="A local or hub vision-language model, or 'testbed'.")] = "testbed",
    question: Annotated[str, typer.Option(help="The prompt's text.")] = "how many things are there ?",
    out: Annotated[Path | None, typer.Option(help="The PNG to write; NAME.METHOD.KEEP.png if not given.")] = None,
    seed: int = 0,
) -> None:
    """Draw what is kept of an image: kept tokens bright, merged ones in their owner's colour, scores as a heat map."""
    from tokensieve.bench import overlay
    from tokensieve.bench.data import Sample, read_image
    from tokensieve.bench.subject import Subject
    from tokensieve.core.plan import plan

    whole = plan(method, budget(keep))
    if not image.is_file():
        raise FileNotFoundError(f"{image}: no such file")
    sample = Sample(read_image(image), question, name=image.name)
    shown = overlay.look(Subject.load(model), sample, whole, seed)
    file = out or Path(f"{image.stem}.{method}.{keep}.png")
    overlay.sheet(shown, f"{method}, keep {keep} of {shown.reduction.n}: {shown.answer}").save(file)
    typer.echo(
        f"{file}: {int(shown.reduction.counts[0])} of {shown.reduction.n} tokens; the model answers: {shown.answer}"
    )
