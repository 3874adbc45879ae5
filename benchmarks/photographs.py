"""`python -m benchmarks.photographs`: `tokensieve codec bench` as it is by default, on 200 crops of three photographs.

Writes the table of docs/measured/quantizers.md: which of four tokenizers to take at 448 bytes an image, and what the run cost. An
interrupted run goes on; what it took is added up.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import cbook
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from sklearn.datasets import load_sample_image

from benchmarks.pages import fill, table
from tokensieve.bench.codec.page import page
from tokensieve.bench.codec.run import CONTINUOUS, PUBLISHED, Config, run
from tokensieve.bench.codec.verdict import verdict
from tokensieve.cli.codec import DEFAULT
from tokensieve.core.files import write_json

HOME, PAGE = Path("out/photographs"), Path("docs/measured/quantizers.md")
COUNT, SIDES, TOKENS, BITS = 200, (96, 256), (256, 128, 64), 3584


def photographs(folder: Path) -> Path:
    """Crops with drawn sides and places, seed 0, as PNG."""
    whole = [load_sample_image("china.jpg"), load_sample_image("flower.jpg")]
    with cbook.get_sample_data("grace_hopper.jpg") as file:
        whole.append(np.asarray(Image.open(file).convert("RGB")))
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    for i in range(COUNT):
        image, side = whole[i % len(whole)], int(draw.integers(*SIDES))
        top, left = (int(draw.integers(0, size - side)) for size in image.shape[:2])
        Image.fromarray(image[top : top + side, left : left + side]).save(folder / f"{i:03d}.png")
    return folder


def measured() -> tuple[dict[str, Any], float]:
    """The results, and the CPU minutes that they took, over all that was interrupted."""
    config = Config(photographs(HOME / "photographs"), DEFAULT, TOKENS, HOME / "out")
    file = HOME / "minutes.json"
    spent = json.loads(file.read_text())["minutes"] if file.is_file() else 0.0
    began = time.process_time()

    def report(what: str, done: float, of: float) -> None:
        write_json(file, {"minutes": spent + (time.process_time() - began) / 60})
        bar.update(task, description=what, completed=done, total=of)

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("reading", total=None)
        results = run(config, report)
    page(results, config.out)
    return results, json.loads(file.read_text())["minutes"]


def main() -> None:
    torch.set_num_threads(1)
    results, minutes = measured()
    rows = results["rows"]
    shown = [f"{name}@256" for name in (CONTINUOUS, *DEFAULT, PUBLISHED)]
    shown += [key for key, row in rows.items() if row.get("rate_bits") == BITS]
    forms = {"psnr": "{:.2f}", "used": "{:.1%}", "lm_bits": "{:.2f}", "psnr_swapped": "{:.2f}", "survival": "{:.1%}"}
    lines = []
    for row in (rows[key] for key in shown):
        cells = ["" if row.get(key) is None else form.format(row[key]) for key, form in forms.items()]
        size = "" if row["bits"] is None else f"{row['bits'] / 8:.0f}"
        lines.append([row["name"], size, *cells])
    heads = [
        "256 tokens",
        "bytes",
        "PSNR",
        "codes used",
        "bits a token, small model",
        "after 10% swapped",
        "codes that survive",
    ]
    said = " ".join(verdict(rows, BITS))
    cost = f"The whole run, 64, 128 and 256 tokens, took {minutes:.1f} CPU minutes on one thread."
    fill(PAGE, "photographs", f"{table(heads, lines)}\n\nIt says: {said}\n\n{cost}")


if __name__ == "__main__":
    main()
