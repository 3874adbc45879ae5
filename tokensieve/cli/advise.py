"""The command that looks for a plan; a thin caller."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tokensieve.cli.common import Json, budget, console, measured


def add(app: typer.Typer) -> None:
    """Make this command part of an application."""
    app.command()(advise)


def advise(
    asked: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            help="A local or hub model, or 'testbed'; with --texts a language model, or 'smollm2'; with --inputs an encoder."
        ),
    ],
    questions: Annotated[
        Path | None,
        typer.Option(help='Judge plans by your questions: JSON lines of {"image": .., "question": .., "answer": ..}.'),
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Judge them by what is said of a folder's images.")] = None,
    question: Annotated[str, typer.Option(help="What to ask about each image of --images.")] = "Describe the image.",
    texts: Annotated[Path | None, typer.Option(help="Judge plans of the cache by a folder's texts.")] = None,
    inputs: Annotated[
        Path | None,
        typer.Option(help="Judge an encoder's by a folder of images, sound or texts, as bench-encoder does."),
    ] = None,
    quality: Annotated[
        list[float] | None, typer.Option(help="The share of the full model's quality that has to stay. [0.98]")
    ] = None,
    target: Annotated[
        list[str] | None, typer.Option("--for", help="What is to be least: latency, memory or flops. [latency]")
    ] = None,
    minutes: Annotated[float, typer.Option(help="Of asking, over all sittings.")] = 20.0,
    out: Annotated[Path, typer.Option(help="Where plan, page and answers go.")] = Path("advice"),
    methods: Annotated[str | None, typer.Option(help="Try these methods only, comma-separated. [all]")] = None,
    keep: Annotated[
        str | None, typer.Option(help="Budgets: tokens, or shares such as 0.25. [0.25,0.5,0.125,0.375,0.0625]")
    ] = None,
    sites: Annotated[
        str | None, typer.Option(help="Where plans may act: encoder, handoff, prefill, cache. [all]")
    ] = None,
    runtime: Annotated[str, typer.Option(help="What has to run the plan: transformers or vllm.")] = "transformers",
    metric: Annotated[
        str, typer.Option(help="--questions: exact, contains, relaxed, anls, vqa, f1 or rouge-l.")
    ] = "exact",
    limit: Annotated[int, typer.Option(min=1, help="At most so many items, drawn by the seed.")] = 400,
    batch: Annotated[int, typer.Option(min=1, help="Prompts per batch.")] = 20,
    new_tokens: Annotated[int, typer.Option(min=1, help="Answer tokens at most.")] = 16,
    window: Annotated[int, typer.Option(min=64, help="--texts: tokens of each text that are read.")] = 2048,
    seed: Annotated[int, typer.Option(help="For the order of items, and methods that draw.")] = 0,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or auto.")] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda, ... or auto.")] = "auto",
    json_: Json = False,
) -> None:
    """Say which plan to take: the one that costs least and keeps the quality on your data, or that nothing pays; resumes."""
    from rich.console import Console

    from tokensieve.planner.advise import advise as look

    for name, given in (("--for", target), ("--quality", quality)):
        if given is not None and len(given) > 1:
            raise ValueError(f"{name} {f' {name} '.join(map(str, given))}: a plan is chosen by one of them")
    if inputs is not None:
        return _of_encoder(asked, model, inputs, target, quality)
    options: dict[str, Any] = {
        "question": question, "quality": (quality or [0.98])[0], "target": (target or ["latency"])[0], "minutes": minutes,
        "runtime": runtime, "metric": metric, "limit": limit, "batch": batch, "new_tokens": new_tokens, "window": window,
        "seed": seed, "dtype": dtype, "device": device,
    }  # fmt: skip
    if methods is not None:
        options["methods"] = _names(methods)
    if sites is not None:
        options["sites"] = _names(sites)
    if keep is not None:
        options["keep"] = [budget(k) for k in keep.split(",")]

    def run() -> None:
        shown = Console(stderr=True, quiet=json_ or not sys.stderr.isatty())
        made = look(model, questions=questions, images=images, texts=texts, out=out, console=shown, **options)
        if json_:
            typer.echo(json.dumps(made.to_json(), indent=2))
            return
        console().print(made.sentence, markup=False, highlight=False, soft_wrap=True)
        plan = "" if made.plan is None else f"\nplan     {out / 'plan.json'}"
        console().print(f"page     {out / 'advice.html'}{plan}", highlight=False)

    measured(run, out, "search.json")


def _of_encoder(
    asked: typer.Context, model: str, inputs: Path, target: list[str] | None, quality: list[float] | None
) -> None:
    """Hand over to bench-encoder with what was given; the rest is as there."""
    from tokensieve.cli.encoders import bench_encoder

    shared = ("minutes", "out", "methods", "keep", "limit", "batch", "seed", "device", "json_")
    given = {n: v for n, v in asked.params.items() if (s := asked.get_parameter_source(n)) and s.name != "DEFAULT"}
    if target not in (None, ["latency"]):
        raise ValueError(
            f"--for {target[0]} with --inputs: of an encoder's plans the fastest is looked for, --for latency"
        )
    odd = sorted(set(given) - {*shared, "model", "inputs", "quality", "target"})
    if odd:
        raise ValueError(f"--{odd[0].replace('_', '-')} is not for encoders, which --inputs says this is; leave it out")
    options = {n: given[n] for n in shared if n in given}
    options.setdefault("out", asked.params["out"])
    if quality is not None:
        options["fidelity"] = quality[0]
    bench_encoder(model, inputs, **options)


def _names(text: str) -> list[str]:
    return [n.strip() for n in text.split(",") if n.strip()]
