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
    """Measure methods of each kind on the packaged model, and of the cache on SmolLM2 where it is here: tables, plots, pages."""
    from tokensieve.bench import demo as shown

    measured(lambda: shown.demo(out, console()), out)


def bench(
    model: Annotated[str, typer.Argument(help="A local or hub model, or 'testbed'.")] = "testbed",
    methods: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated names; `tokensieve methods` lists them. [visionzip,divprune; texts: snapkv,keydiff]"
        ),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(help="Comma-separated budgets: tokens, or shares such as 0.25. [192,64; texts: 0.5,0.25]"),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where results go.")] = Path("tokensieve-bench"),
    testbed: Annotated[bool, typer.Option("--testbed", help="Ask the testbed's held-out questions.")] = False,
    which: Annotated[str, typer.Option("--set", help="Which of them: scenes, clips, pairs or anyres.")] = "scenes",
    images: Annotated[Path | None, typer.Option(help="Ask about the images of a folder instead.")] = None,
    question: Annotated[str, typer.Option(help="What to ask about each image of --images.")] = "Describe the image.",
    questions: Annotated[
        Path | None,
        typer.Option(help='Ask your own: JSON lines of {"image": .., "question": .., "answer": .., "choices": [..]}.'),
    ] = None,
    texts: Annotated[
        Path | None, typer.Option(help="Continue the texts of a folder, under methods of the cache.")
    ] = None,
    metric: Annotated[
        str, typer.Option(help="--questions: exact, contains, relaxed, anls, vqa, f1 or rouge-l.")
    ] = "exact",
    equal: Annotated[
        str, typer.Option(help="--questions: what budgets make equal: mean (tokens over the layers), flops or label.")
    ] = "mean",
    plan: Annotated[
        list[Path] | None, typer.Option(help="--questions, --texts: a saved plan; may be given again.")
    ] = None,
    window: Annotated[int, typer.Option(min=64, help="--texts: tokens of each text that are read.")] = 2048,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most so many questions or texts. [testbed: 300; others: all]")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Prompts per batch.")] = 20,
    new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Answer tokens at most. [testbed: 4; images, questions: 16]")
    ] = None,
    seed: Annotated[int, typer.Option(help="For methods that draw, and for the choice of questions.")] = 0,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16, float16 or auto. [questions, texts: auto; others: float32]")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, ... or auto. [questions, texts: auto; others: cpu]")
    ] = None,
) -> None:
    """Compare methods and budgets on a model: accuracy or agreement, tokens, FLOPs, memory, times; resumes."""
    from tokensieve.bench import session
    from tokensieve.bench.data import SETS

    given = [testbed, images is not None, questions is not None, texts is not None]
    if sum(given) != 1:
        raise ValueError(
            "say what to ask: either --testbed or --images DIR, or your own: --questions FILE or --texts DIR"
        )
    if which not in SETS:
        raise ValueError(f"--set {which}: it must be one of {', '.join(SETS)}")
    if not testbed and which != "scenes":
        others = "--images, --questions or --texts"
        raise ValueError(
            f"--set {which} chooses among the testbed's questions; it goes with --testbed, not with {others}"
        )
    if plan and not (questions or texts):
        raise ValueError("--plan goes with --questions or --texts")
    names = [
        n.strip() for n in (methods or ("snapkv,keydiff" if texts else "visionzip,divprune")).split(",") if n.strip()
    ]
    budgets = [budget(k) for k in (keep or ("0.5,0.25" if texts else "192,64")).split(",")]
    if questions is None and texts is None:
        rest = (which, images, question, limit, batch, seed, dtype or "float32", device or "cpu", new_tokens)
        asked = session.BenchConfig(model, names, budgets, out, *rest)
        measured(lambda: session.bench(asked, console()), out)
        return
    from tokensieve.bench import own

    data = questions or texts
    assert data is not None
    config = own.OwnConfig(
        model, data, names, budgets, out, tuple(plan or ()), metric, equal, limit, batch, new_tokens or 16, seed,
        dtype or "auto", device or "auto", window,
    )  # fmt: skip
    run = own.questions if questions else own.texts
    measured(lambda: run(config, console()), out)


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
