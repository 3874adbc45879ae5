"""Train the testbed model from nothing: `python -m tokensieve.testbed.train --size cpu --out DIR --minutes 90`."""

import os
from pathlib import Path
from typing import Annotated

import torch
import typer

from . import stages
from .card import package
from .evaluate import evaluate
from .loop import TrainingStage, fit
from .model import SIZES, build, build_processor

# Share of the minutes, learning rate at width 128 to 160, batch on the CPU.
PLAN = {
    "see": (0.37, 2e-3, 4),
    "talk": (0.09, 2e-3, 16),
    "align": (0.04, 2e-3, 8),
    "answer": (0.50, 1e-3, 8),
}
SLOW_TOWER = {"tower": 0.1}  # the share of the rate that the tower gets in the last stage


def train(
    size: str,
    out: Path,
    minutes: float = 90.0,
    steps: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    workers: int = 1,
    only: tuple[str, ...] = tuple(PLAN),
    stop_at: int | None = None,
):
    """Run the stages that are not done yet in `out`; returns the model and the record of every stage.

    `steps` fixes the length of each stage instead of `minutes` of all of them; then the result depends on nothing but
    the seed. Interrupted at any time, the next call goes on from the last checkpoint.
    """
    out.mkdir(parents=True, exist_ok=True)
    model, processor = build(size, seed).to(device), build_processor()
    records, wide = {}, size == "full"
    for name in only:
        share, rate, batch = PLAN[name]
        stage = TrainingStage(name, rate / 2 if wide else rate, batch * 4 if wide else batch, share * minutes, steps)
        torch.manual_seed(seed)
        modules, make, collate, loss_of = getattr(stages, name)(model, seed * 1000)
        watch = None
        if name == "answer" and steps is None:
            watch = lambda: _brief(evaluate(model.eval(), processor, scenes=64, seed=1))  # noqa: E731
        records[name] = fit(
            stage, modules, make, collate, loss_of, out, SLOW_TOWER, workers, watch=watch, stop_at=stop_at
        )
        if not records[name]["done"]:
            break
    return model.eval(), records


def _brief(table: dict) -> dict[str, float]:
    return {f"test {kind}": row["accuracy"] for kind, row in table.items()}


def main(
    out: Annotated[Path, typer.Option(help="Where checkpoints and the log go.")],
    size: Annotated[str, typer.Option(help=f"One of {', '.join(SIZES)}.")] = "cpu",
    minutes: Annotated[float, typer.Option(help="Training time of all stages together.")] = 90.0,
    seed: int = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cuda" if torch.cuda.is_available() else "cpu",
    workers: Annotated[int, typer.Option(help="Processes that draw scenes.")] = 1,
    scenes: Annotated[int, typer.Option(help="Test scenes of the final evaluation.")] = 1000,
    to: Annotated[Path | None, typer.Option(help="The model directory to write; OUT/llava if not given.")] = None,
):
    """Train, evaluate on the test split, and write a model directory with its card."""
    if device == "cpu":
        torch.set_num_threads(os.cpu_count() or 1)
    model, records = train(size, out, minutes, seed=seed, device=device, workers=workers)
    processor = build_processor()
    target = to or out / "llava"
    table = package(model, processor, target, size=size, seed=seed, records=records, scenes=scenes)
    for kind, row in table.items():
        typer.echo(f"{kind:10} {row['accuracy']:.3f}  prior {row['prior']:.3f}  n {row['n']}")
    typer.echo(f"written to {target}")


if __name__ == "__main__":
    typer.run(main)
