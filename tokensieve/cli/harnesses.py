"""The commands that run other people's harnesses with a model under a plan; thin callers."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

Args = Annotated[list[str] | None, typer.Argument(help="What the harness takes, behind --.", metavar="-- ARGS")]
PlanFile = Annotated[
    Path | None, typer.Option("--plan", help="A plan's file; by default tokensieve.json beside the weights.")
]
Seed = Annotated[int, typer.Option(help="For methods that draw.")]


def add(app: typer.Typer) -> None:
    """Make these commands part of an application."""
    app.command("lm-eval")(lm_eval)
    app.command("lmms-eval")(lmms_eval)


def lm_eval(args: Args = None, plan: PlanFile = None, seed: Seed = 0) -> None:
    """Run lm-eval's own command line with the model under a plan: tokensieve lm-eval --plan plan.json -- --model hf ..."""
    _run("lm_eval", args, plan, seed)


def lmms_eval(args: Args = None, plan: PlanFile = None, seed: Seed = 0) -> None:
    """Run lmms-eval's own command line with the model under a plan: tokensieve lmms-eval --plan plan.json -- --model ..."""
    _run("lmms_eval", args, plan, seed)


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
