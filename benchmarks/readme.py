"""Write the demo's results into README.md and docs/: `python -m benchmarks.readme out/demo`."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from textwrap import fill as wrapped
from typing import Any

import tokensieve as ts
from benchmarks.pages import fill
from tokensieve.bench import overlay
from tokensieve.bench.columns import columns
from tokensieve.bench.data import from_testbed
from tokensieve.bench.results import load
from tokensieve.bench.subject import Subject
from tokensieve.bench.tables import ordered

ROOT = Path(__file__).parent.parent
KEEP = 160
"""The second of the demo's two means."""
SHOWN = ("full", "random", "uniform", "pool", "visionzip", "divprune", "pyramiddrop", "tome")
"""Beside the full model and the baselines one method of each kind, whatever it reaches: by attention, by diversity, inside the
language model, inside the encoder."""
ROWS = 8
"""At most so many: what is compared in full is on the leaderboard."""


def table(data: dict[str, Any]) -> str:
    """A Markdown table of the demo at one budget, with what it was measured on."""
    rows, kinds = data["rows"], list(data["rows"]["full"]["accuracy"])
    shown = [c for c in columns("readme", rows) if c.name not in (*kinds, "keep")]
    lines = ["| " + " | ".join(c.title for c in shown) + " |"]
    lines.append("|" + "|".join("---" if c.text else "---:" for c in shown) + "|")
    chosen = [row for row in ordered(rows) if row["method"] in SHOWN and row["keep"] in (None, KEEP)]
    lines += ["| " + " | ".join(c.show(row, rows) for c in shown) + " |" for row in chosen[:ROWS]]
    settings, env = data["settings"], data["environment"]
    about = (
        f"{KEEP} of {rows['full']['mean_tokens']:.0f} visual tokens in the mean over the layers. Accuracy in %, "
        f"{settings['samples']} held-out questions of {len(kinds)} kinds, differences paired, with 95% intervals; seed "
        f"{settings['seed']}. FLOPs of encoder and prefill. Milliseconds per batch of {settings['batch']}, medians; "
        f"{env['cpu']}, {env['cores']} cores, torch {env['versions']['torch']}, transformers {env['versions']['transformers']}."
    )
    return "\n".join([*lines, "", wrapped(about, 128)])


def main(folder: Path) -> None:
    data = load(folder / "results.json")
    fill(ROOT / "README.md", "demo", table(data))
    shutil.copy(folder / "pareto.png", ROOT / "docs" / "pictures" / "pareto.png")
    sample = from_testbed(10, 0)[0]
    shown = overlay.look(Subject.load("testbed"), sample, ts.Plan(ts.stage("visionzip", keep=64)))
    sheet = overlay.sheet(shown, f"visionzip, keep 64 of 576: {sample.question} {shown.answer}", 320)
    sheet.save(ROOT / "docs" / "pictures" / "visionzip.png", optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
