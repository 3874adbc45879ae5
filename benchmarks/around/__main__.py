"""Train, measure, and write tower, projector and card: `python -m benchmarks.around --out out/around --minutes 95`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from safetensors.torch import save_file

from benchmarks.around import answer, contrast, properties
from benchmarks.around.card import card
from tokensieve.core.files import write, write_json, write_text
from tokensieve.testbed.around.adapters import attach
from tokensieve.testbed.around.model import TOWERS, Around, build, restored
from tokensieve.testbed.around.scenes import generate
from tokensieve.testbed.card import made
from tokensieve.testbed.loop import TrainingStage, fit

PLAN = {
    "contrast": (contrast.contrast, 0.45, 1.6e-3, 16),
    "align": (answer.align, 0.08, 2e-3, 16),
    "talk": (answer.talk, 0.2, 1e-3, 6),
    "answer": (answer.answer, 0.27, 3e-4, 4),
}
"""The stages: what is learned, its share of the minutes, learning rate, and batch on a CPU."""


def train(around: Around, out: Path, minutes: float, steps: int | None, device: str, seed: int) -> dict[str, Any]:
    """Run what is not done yet in ``out``; the record of each stage."""
    out.mkdir(parents=True, exist_ok=True)
    around.model.to(device)
    around.adapters.to(device)
    attach(around.model.model.language_model, around.adapters)
    records = {}
    for name, (stage_of, share, rate, batch) in PLAN.items():
        stage = TrainingStage(name, rate, batch * (8 if device == "cuda" else 1), share * minutes, steps)
        torch.manual_seed(seed)
        modules, make, collate, loss_of = stage_of(around, seed * 1000)
        workers = 4 if device == "cuda" else 0
        records[name] = fit(stage, modules, make, collate, loss_of, out, workers=workers)
        if not records[name]["done"]:
            break
    return records


def main(
    out: Annotated[Path, typer.Option(help="Where checkpoints, weights and card go.")] = Path("out/around"),
    minutes: Annotated[float, typer.Option(help="Of training, all stages together.")] = 95.0,
    steps: Annotated[int | None, typer.Option(help="Of each stage, in place of minutes.")] = None,
    size: Annotated[str, typer.Option(help=f"The tower's: {', '.join(TOWERS)}.")] = "small",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cuda" if torch.cuda.is_available() else "cpu",
    count: Annotated[int, typer.Option(help="Held-out questions of each kind.")] = 200,
    seed: int = 0,
    to: Annotated[Path | None, typer.Option(help="Where weights and card go; OUT if not given.")] = None,
    notes: Annotated[str, typer.Option(help="What the card says besides of how the weights came about.")] = "",
) -> None:
    around = build(size, seed)
    records = train(around, out, minutes, steps, device, seed)
    weights = {
        f"{n}.{k}": v.to(torch.bfloat16).contiguous()
        for n, m in around.trained.items()
        for k, v in m.state_dict().items()
    }
    file = (to or out) / "around.safetensors"
    write(file, lambda part: save_file(weights, part))
    around = restored(file, size)
    found = properties.properties(around, [generate(0, i, "test") for i in range(40)])
    right = properties.right(around, count)
    record = made(records, torch.device(device), ("torch", "transformers")) | {
        "seed": seed,
        "right": right,
        "count": count,
    }
    write_json(file.parent / "training.json", record)
    told = card(record, found, notes)
    write_text(file.parent / "MODEL_CARD.md", told)
    typer.echo(told)


if __name__ == "__main__":
    typer.run(main)
