"""Write the demo's results into README.md and docs/: `python -m benchmarks.readme out/demo`."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
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
SHOWN = (192, 64, 32)


def table(data: dict[str, Any]) -> str:
    """A Markdown table of the demo at some budgets, with what it was measured on."""
    rows = data["rows"]
    shown = columns("readme", list(rows["full"]["accuracy"]))
    lines = ["| " + " | ".join(c.title for c in shown) + " |"]
    lines.append("|" + "|".join("---" if c.text else "---:" for c in shown) + "|")
    for row in ordered(rows):
        if row["keep"] is None or row["keep"] in SHOWN:
            lines.append("| " + " | ".join(c.show(row, rows) for c in shown) + " |")
    settings, env = data["settings"], data["environment"]
    about = (
        f"Accuracy in %, {settings['samples']} held-out questions (so a few percent are noise), seed {settings['seed']}. "
        f"FLOPs of encoder and prefill. Milliseconds per batch of {settings['batch']}, medians; {env['cpu']}, "
        f"{env['cores']} cores, torch {env['versions']['torch']}, transformers {env['versions']['transformers']}."
    )
    return "\n".join([*lines, "", about])


def main(folder: Path) -> None:
    data = load(folder / "results.json")
    fill(ROOT / "README.md", "demo", table(data))
    shutil.copy(folder / "pareto.png", ROOT / "docs" / "pareto.png")
    sample = from_testbed(10, 0)[0]
    shown = overlay.look(Subject.load("testbed"), sample, ts.Plan(ts.stage("visionzip", keep=64)))
    sheet = overlay.sheet(shown, f"visionzip, keep 64 of 576: {sample.question} {shown.answer}", 320)
    sheet.save(ROOT / "docs" / "visionzip.png", optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
