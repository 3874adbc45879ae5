"""The command line; every command is a thin caller of one function."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokensieve import cli_retrieval

if TYPE_CHECKING:
    from tokensieve.registry import Card

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="Spend fewer tokens."
)
cli_retrieval.add(app)
Json = Annotated[bool, typer.Option("--json", help="Print JSON only.")]


def main() -> None:
    """Run a command; what cannot be done is one line on stderr and exit code 2."""
    from tokensieve.retrieval.errors import IndexProblem

    try:
        app()
    except (ValueError, OSError, IndexProblem) as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(version("tokensieve"))
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def demo(out: Annotated[Path, typer.Option(help="Where results go.")] = Path("tokensieve-demo")) -> None:
    """Measure every method on the packaged model: table, plot and a page with pictures, in minutes."""
    from tokensieve.bench import session

    _measured(lambda: session.demo(out, _console()), out)


@app.command()
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
    budgets = [_budget(k) for k in keep.split(",")]
    rest = (which, images, question, limit, batch, seed, dtype, device, new_tokens)
    asked = session.Asked(model, names, budgets, out, *rest)
    _measured(lambda: session.bench(asked, _console()), out)


@app.command()
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
    from tokensieve.plan import plan

    whole = plan(method, _budget(keep))
    if not image.is_file():
        raise FileNotFoundError(f"{image}: no such file")
    sample = Sample(read_image(image), question, name=image.name)
    shown = overlay.look(Subject.load(model), sample, whole, seed)
    file = out or Path(f"{image.stem}.{method}.{keep}.png")
    overlay.sheet(shown, f"{method}, keep {keep} of {shown.reduction.n}: {shown.answer}").save(file)
    typer.echo(
        f"{file}: {int(shown.reduction.counts[0])} of {shown.reduction.n} tokens; the model answers: {shown.answer}"
    )


@app.command()
def methods(
    names: Annotated[list[str] | None, typer.Argument(help="Methods to tell all about, with their options.")] = None,
    site: Annotated[
        str | None, typer.Option(help="Only those that run there: encoder, handoff, prefill, cross, cache.")
    ] = None,
    family: Annotated[str | None, typer.Option(help="Only this family.")] = None,
    json_: Json = False,
) -> None:
    """List the registered methods, or tell what options some have."""
    from tokensieve import registry

    if names and (site or family):
        raise ValueError("--site and --family choose among all methods; they do not go with names")
    cards = [registry.card(name) for name in names or registry.methods(site, family)]
    if json_:
        typer.echo(json.dumps([registry.as_dict(c) for c in cards], indent=2))
        return
    if names:
        for c in cards:
            _print_card(c)
        return
    rows = [(c.name, c.family, "/".join(c.sites), ", ".join(map(str, c.systems)), c.summary) for c in cards]
    _print(("name", "family", "sites", "systems", "what it does"), rows)


def _print_card(card: Card) -> None:
    typer.echo(f"{card.name} ({card.family}; at {', '.join(card.sites)}): {card.summary}")
    typer.echo(f"reads {', '.join(card.needs) or 'no signal but the features'}")
    if not card.options:
        typer.echo("no options")
        return
    rows = [(o.name, o.type, o.range, o.unit, repr(o.default), o.meaning) for o in card.options.values()]
    _print(("option", "type", "range", "unit", "default", "meaning"), rows)


@app.command()
def systems(
    family: Annotated[str | None, typer.Option(help="Only this family.")] = None,
    tier: Annotated[int | None, typer.Option(min=1, max=4, help="Only this tier (1 is the core).")] = None,
    json_: Json = False,
) -> None:
    """List the published systems, what answers to each here, and its last recorded check."""
    from tokensieve import registry

    record = registry.record()["rows"]
    rows = registry.systems(family, tier)
    if json_:
        full = [
            registry.as_dict(s) | {"entries": registry.entries(s.id), "record": record.get(str(s.id))} for s in rows
        ]
        typer.echo(json.dumps(full, indent=2))
        return
    lines = [
        (str(s.id), s.name, s.family, str(s.tier), ", ".join(registry.entries(s.id)), *_checked(record, s.id))
        for s in rows
    ]
    _print(("id", "system", "family", "tier", "entry", "status", "numbers"), lines)


@app.command()
def models(
    names: Annotated[
        list[str] | None, typer.Argument(help="Model types to check now; the last record if none.")
    ] = None,
    json_: Json = False,
) -> None:
    """List the architectures that a sieve runs on, what was checked of each, and why others are refused."""
    from tokensieve.bench import models as matrix

    rows = matrix.matrix(names) if names else matrix.recorded()
    if json_:
        typer.echo(json.dumps([asdict(row) for row in rows], indent=2))
        return
    _print(
        ("architecture", "status", "checked", "note"), [(r.name, r.status, ", ".join(r.checked), r.why) for r in rows]
    )


def _checked(record: dict[str, Any], system: int) -> tuple[str, str]:
    row = record.get(str(system))
    if row is None:
        return "missing", ""
    return row["status"], ", ".join(f"{k} {v}" for k, v in row["numbers"].items())


def _print(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(*head, header_style="bold")
    for row in rows:
        table.add_row(*map(escape, row))
    _console().print(table)


def _console() -> Any:
    from rich.console import Console

    # A pipe or a log has no width of its own; give tables room.
    return Console() if sys.stdout.isatty() else Console(width=180)


def _budget(text: str) -> int | float:
    from tokensieve.parts.budget import check

    try:
        value = float(text) if "." in text else int(text)
    except ValueError as error:
        raise ValueError(f"--keep {text!r}: it must be tokens (64) or a share (0.25)") from error
    check(value, "--keep")
    return value


def _measured(work: Any, out: Path) -> None:
    try:
        work()
    except KeyboardInterrupt:
        typer.echo(
            f"\ninterrupted; finished rows are in {out / 'results.json'}, the same command goes on from there", err=True
        )
        raise SystemExit(130) from None
