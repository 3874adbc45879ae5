"""Train, measure, and write tower, projector and card: `python -m benchmarks.around --out out/around --minutes 60`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from safetensors.torch import save_file

from benchmarks.around import answer, contrast, properties
from benchmarks.pages import table
from tokensieve.core.files import write, write_text
from tokensieve.testbed.around.model import TOWERS, VISUAL, Around, build, restored
from tokensieve.testbed.around.scenes import generate
from tokensieve.testbed.card import machine
from tokensieve.testbed.loop import TrainingStage, fit

PLAN = {
    "contrast": (contrast.contrast, 0.4, 1.6e-3, 16),
    "align": (answer.align, 0.04, 2e-3, 16),
    "answer": (answer.answer, 0.56, 1e-3, 4),
}
"""The stages: what is learned, its share of the minutes, learning rate, and batch on a CPU."""
SLOW = {"tower": 0.1}


def train(around: Around, out: Path, minutes: float, steps: int | None, device: str, seed: int) -> dict[str, Any]:
    """Run what is not done yet in ``out``; the record of each stage."""
    out.mkdir(parents=True, exist_ok=True)
    around.model.to(device)
    around.adapters.to(device)
    records = {}
    for name, (stage_of, share, rate, batch) in PLAN.items():
        stage = TrainingStage(name, rate, batch * (8 if device == "cuda" else 1), share * minutes, steps)
        torch.manual_seed(seed)
        modules, make, collate, loss_of = stage_of(around, seed * 1000)
        slow = SLOW if name == "answer" else None
        workers = 4 if device == "cuda" else 0
        records[name] = fit(stage, modules, make, collate, loss_of, out, slow, workers)
        if not records[name]["done"]:
            break
    return records


def _verdict(right: float) -> str:
    if right < properties.LEFT_OUT:
        return "left out of tables"
    return "" if right >= properties.KIND else "below the goal"


def card(
    records: dict[str, Any], found: Sequence[properties.Property], right: dict[str, float], count: int, where: str
) -> str:
    """What it is, what was asked of it, and what of that it has."""
    rows = [[p.name, p.goal, f"{p.value:.3g}", "yes" if p.holds else "**no**"] for p in found]
    kinds = [
        [
            k,
            f"{100 * r:.1f}%",
            _verdict(r),
        ]
        for k, r in right.items()
    ]
    stages_ = [
        [n, str(r["step"]), f"{r['seconds'] / 60:.1f}", "yes" if r["done"] else "no"] for n, r in records.items()
    ]
    return "\n".join(
        [
            "# A LLaVA around SmolLM2", "",
            "A CLIP-like tower, trained by image-text contrast on generated scenes, and a projector in front of",
            f"SmolLM2-135M-Instruct, to whose own weights adapters of low rank are added: {VISUAL} visual tokens.",
            f"Made by `python -m benchmarks.around`, {where}.",
            "",
            "## Training", "", table(["stage", "steps", "minutes", "done"], stages_), "",
            "## Properties, fixed before any method is measured", "",
            table(["property", "asked for", "measured", "holds"], rows), "",
            f"## Accuracy with all tokens, {count} held-out questions a kind", "",
            f"The goal is {100 * properties.KIND:.0f}%.", "", table(["kind", "right", ""], kinds), "",
        ]
    )  # fmt: skip


def main(
    out: Annotated[Path, typer.Option(help="Where checkpoints, weights and card go.")] = Path("out/around"),
    minutes: Annotated[float, typer.Option(help="Of training, both stages together.")] = 60.0,
    steps: Annotated[int | None, typer.Option(help="Of each stage, in place of minutes.")] = None,
    size: Annotated[str, typer.Option(help=f"The tower's: {', '.join(TOWERS)}.")] = "small",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cuda" if torch.cuda.is_available() else "cpu",
    count: Annotated[int, typer.Option(help="Held-out questions of each kind.")] = 200,
    seed: int = 0,
) -> None:
    around = build(size, seed)
    records = train(around, out, minutes, steps, device, seed)
    weights = {
        f"{n}.{k}": v.to(torch.bfloat16).contiguous()
        for n, m in around.trained.items()
        for k, v in m.state_dict().items()
    }
    write(out / "around.safetensors", lambda part: save_file(weights, part))
    around = restored(out / "around.safetensors", size)
    found = properties.properties(around, [generate(0, i, "test") for i in range(40)])
    right = properties.right(around, count)
    where = f"seed {seed}, on {machine(torch.device(device))}, {os.cpu_count()} cores"
    write_text(out / "CARD.md", card(records, found, right, count, where))
    typer.echo((out / "CARD.md").read_text())


if __name__ == "__main__":
    typer.run(main)
