"""Make the model of several pictures: `python -m tokensieve.testbed.train_several --out DIR --minutes 50`, on one CPU thread."""

from pathlib import Path
from typing import Annotated

import torch
import typer

from . import further
from .card_several import package
from .evaluate import evaluate_several
from .loop import TrainingStage, fit
from .model import load
from .onevision import ItemReader, grown

# Share of the minutes, learning rate, batch.
PLAN = {"talk": (0.55, 1.5e-3, 8), "answer": (0.45, 6e-4, 4)}


def train(
    out: Path,
    minutes: float = 50.0,
    steps: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    workers: int = 0,
    start=None,
    only: tuple[str, ...] = tuple(PLAN),
    stop_at: int | None = None,
):
    """Run the stages that are not done yet in `out`, from the packaged model of one picture (or `start`).

    Returns the model and the record of every stage. As for the first model, `steps` fixes the length of each stage, and an
    interrupted training goes on from its last checkpoint.
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model = grown(start or load()[0]).to(device)
    records = {}
    for name in only:
        share, rate, batch = PLAN[name]
        stage = TrainingStage(name, rate, batch, share * minutes, steps)
        torch.manual_seed(seed)
        modules, make, collate, loss_of = getattr(further, name)(model, seed * 1000 + 4000, batch)
        watch = (lambda: _brief(model)) if name == "answer" and steps is None else None
        records[name] = fit(
            stage, modules, make, collate, loss_of, out, None, workers, watch=watch, watch_every=600, stop_at=stop_at
        )
        if not records[name]["done"]:
            break
    return model.eval(), records


def _brief(model) -> dict[str, float]:
    tables = evaluate_several(model.eval(), 16, seed=1)
    return {f"test {form} {kind}": row["accuracy"] for form, table in tables.items() for kind, row in table.items()}


def main(
    out: Annotated[Path, typer.Option(help="Where checkpoints and the log go.")],
    minutes: Annotated[float, typer.Option(help="Training time of both stages together.")] = 50.0,
    seed: int = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    workers: Annotated[int, typer.Option(help="Processes that draw pictures, beside this one.")] = 0,
    number: Annotated[int, typer.Option(help="Test clips, pairs and large pictures of the final evaluation.")] = 150,
    to: Annotated[Path | None, typer.Option(help="The model directory to write; OUT/onevision if not given.")] = None,
):
    """Train, evaluate on the test split, and write a model directory with its card."""
    if device == "cpu":
        torch.set_num_threads(1)
    model, records = train(out, minutes, seed=seed, device=device, workers=workers)
    target = to or out / "onevision"
    for form, table in package(model, ItemReader.fresh(), target, seed, records, number).items():
        for kind, row in table.items():
            typer.echo(f"{form:8} {kind:10} {row['accuracy']:.3f}  prior {row['prior']:.3f}  n {row['n']}")
    typer.echo(f"written to {target}")


if __name__ == "__main__":
    typer.run(main)
