"""`python -m benchmarks.photographs`: `tokensieve codec bench` as it is by default, on 200 crops of three photographs.

Writes the table of docs/measured/quantizers.md: which of four tokenizers to take at 448 bytes an image, and what the run cost. An
interrupted run goes on.
"""

from __future__ import annotations

import json
import sys
import textwrap
import time
from collections import Counter
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
COUNT, SIDES, TOKENS, BITS = 200, (96, 220), (256, 128, 64), 3584


def photographs(folder: Path) -> Path:
    """Crops with drawn sides and places, seed 0, as JPEG of quality 92."""
    whole = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    whole.append(Image.open(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)).convert("RGB"))
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    for i in range(COUNT):
        image, side = whole[i % len(whole)], int(draw.integers(*SIDES))
        left, top = (int(draw.integers(0, size - side)) for size in image.size)
        image.crop((left, top, left + side, top + side)).save(folder / f"photo-{i:03d}.jpg", quality=92)
    return folder


def measured(tokens: tuple[int, ...]) -> tuple[dict[str, Any], dict[str, float]]:
    """The results, and the CPU seconds that each row took."""
    config = Config(photographs(HOME / "photos"), DEFAULT, tokens, HOME / "out")
    file = HOME / "seconds.json"
    spent: Counter[str] = Counter(json.loads(file.read_text()) if file.is_file() else {})
    now, since = "", time.process_time()

    def report(what: str, done: float, of: float) -> None:
        nonlocal now, since
        spent[now] += time.process_time() - since  # type: ignore[assignment]
        now, since = what, time.process_time()
        write_json(file, dict(spent))
        bar.update(task, description=what, completed=done, total=of)

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("reading", total=None)
        results = run(config, report)
    page(results, config.out)
    return results, dict(spent)


def main(tokens: tuple[int, ...] = TOKENS) -> None:
    torch.set_num_threads(1)
    results, spent = measured(tokens)
    rows = results["rows"]
    shown = [f"{name}@256" for name in (CONTINUOUS, *DEFAULT, PUBLISHED)]
    shown += [key for key, row in rows.items() if row.get("rate_bits") == BITS]
    forms = {"psnr": "{:.2f}", "used": "{:.1%}", "lm_bits": "{:.2f}", "psnr_swapped": "{:.2f}", "survival": "{:.1%}"}
    lines = []
    for row in (rows[key] for key in shown):
        cells = ["" if row.get(key) is None else form.format(row[key]) for key, form in forms.items()]
        lines.append([row["name"], "" if row["bits"] is None else f"{row['bits'] / 8:.0f}", *cells])
    heads = [
        "256 tokens",
        "bytes",
        "PSNR",
        "codes used",
        "bits a token, small model",
        "after 10% swapped",
        "codes that survive",
    ]
    said, timed = " ".join(verdict(rows, BITS)), [key for key in rows if key in spent]
    cost = (
        f"{len(timed)} of the {len(rows)} rows ({', '.join(map(str, tokens))} tokens) were timed: "
        f"{sum(spent.values()) / 60:.1f} CPU minutes on one thread."
    )
    fill(
        PAGE,
        "photographs",
        "\n\n".join([table(heads, lines), *(textwrap.fill(t, 130) for t in (f"It says: {said}", cost))]),
    )


if __name__ == "__main__":
    main(tuple(int(count) for count in sys.argv[1:]) or TOKENS)
