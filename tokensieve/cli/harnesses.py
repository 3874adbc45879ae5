"""The commands that run other people's harnesses with a model under a plan; thin callers."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from tokensieve.cli.common import Json, budget, print_table
from tokensieve.cli.indexes import EncoderPath

Args = Annotated[list[str] | None, typer.Argument(help="What the harness takes, behind --.", metavar="-- ARGS")]
PlanFile = Annotated[
    Path | None, typer.Option("--plan", help="A plan's file; by default tokensieve.json beside the weights.")
]
Seed = Annotated[int, typer.Option(help="For methods that draw.")]


def add(app: typer.Typer) -> None:
    """Make these commands part of an application."""
    app.command("lm-eval")(lm_eval)
    app.command("lmms-eval")(lmms_eval)
    app.command("mteb")(mteb)


def lm_eval(args: Args = None, plan: PlanFile = None, seed: Seed = 0) -> None:
    """Run lm-eval's own command line with the model under a plan: tokensieve lm-eval --plan plan.json -- --model hf ..."""
    _run("lm_eval", args, plan, seed)


def lmms_eval(args: Args = None, plan: PlanFile = None, seed: Seed = 0) -> None:
    """Run lmms-eval's own command line with the model under a plan: tokensieve lmms-eval --plan plan.json -- --model ..."""
    _run("lmms_eval", args, plan, seed)


def mteb(
    tasks: Annotated[list[str], typer.Argument(help="Retrieval tasks, by mteb's names.")],
    keep: Annotated[str, typer.Option(help="Vectors per document, or a share such as 0.5.")] = "0.5",
    method: Annotated[str, typer.Option(help="What makes them fewer.")] = "pool",
    codec: Annotated[str, typer.Option(help="How vectors are stored.")] = "binary",
    encoder: EncoderPath = None,
    json_: Json = False,
) -> None:
    """Run mteb's retrieval tasks over an index: all vectors, exactly, beside what a recipe makes of them."""
    from tokensieve.retrieval.index.recipe import Recipe

    recipe = Recipe(encoder, method, budget(keep), codec)
    try:
        module = import_module("tokensieve.integrations.mteb")
    except ImportError as error:
        raise ValueError(str(error)) from None
    rows = module.compared(module.tasks_of(tasks), recipe)
    if json_:
        typer.echo(json.dumps(rows, indent=2))
        return
    head = ("task", "measure", "exact, float32", "MB", recipe.reduction + ", " + codec, "MB")
    print_table(head, [
        (r["task"], r["measure"], f"{r['exact']:.4f}", f"{r['exact bytes'] / 1e6:.1f}", f"{r['recipe']:.4f}",
         f"{r['recipe bytes'] / 1e6:.1f}") for r in rows
    ])  # fmt: skip


def _run(harness: str, args: list[str] | None, plan: Path | None, seed: int) -> None:
    from tokensieve.core.plan import Plan

    told = None if plan is None else Plan.load(plan)
    try:
        module = import_module(f"tokensieve.integrations.{harness}")
    except ImportError as error:
        raise ValueError(str(error)) from None
    try:
        module.run(args or [], told, seed)
    except RuntimeError as error:
        raise ValueError(str(error)) from error
