"""What the commands of an index take before they have answered: whole processes, over one that does the least they need.

`python -m benchmarks.command_time` lays out a folder of small texts, indexes it, and starts each command in turn (see
`benchmarks.import_time`). Commands that encode nothing stand beside `import torch`, and a search beside a process that imports
and loads the encoder alone.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.before import LEAST, compared
from benchmarks.import_time import BASE, PYTHON, ROUNDS, measure, seconds
from tokensieve.bench.results import environment
from tokensieve.core.files import write_json

LOADED = "the encoder alone"
LIMITS = {BASE: 1.5, LOADED: 1.15}
"""Most of a command over what it stands beside."""
LOAD = "from tokensieve.retrieval.encoders.loading import load_encoder; load_encoder()"
TEXTS = 40
TOKENSIEVE = [*PYTHON, "from tokensieve.cli.main import main; main()"]


def commands(at: Path) -> dict[str, list[str]]:
    """The commands, over an index that is made in a folder; those of `LIMITS` among them."""
    docs, index = at / "docs", str(at / "docs.index")
    docs.mkdir()
    for i in range(TEXTS):
        (docs / f"{i}.txt").write_text(f"Text {i} is about the number {i * i}, and about little besides.\n")
    again = [*TOKENSIEVE, "index", str(docs), "--out", index]
    seconds(again)
    return {
        BASE: [*PYTHON, "import torch"], LOADED: [*PYTHON, LOAD], "--help": [*TOKENSIEVE, "--help"],
        "info": [*TOKENSIEVE, "info", index], "verify": [*TOKENSIEVE, "verify", index],
        "compact": [*TOKENSIEVE, "compact", index], "index, nothing changed": again,
        "search": [*TOKENSIEVE, "search", index, "which number is odd"],
    }  # fmt: skip


def main(out: Path, rounds: int = ROUNDS) -> dict[str, Any]:
    """Measure, print a table, and write ``out``."""
    if rounds < LEAST:
        raise ValueError(f"--rounds {rounds}: an interval asks for {LEAST} or more")
    with TemporaryDirectory() as folder:
        taken = measure(rounds, commands(Path(folder)))
    table = Table("", "ms", "over", "", "95%", "", title=f"whole processes, medians of {rounds} rounds")
    rows = {}
    for name, times in taken.items():
        base = LOADED if name == "search" else BASE
        rows[name] = {"ms": [1e3 * s for s in times], "over": base, **compared(times, taken[base])}
        ratio, low, high = (rows[name][key] for key in ("ratio", "low", "high"))
        verdict = "" if name in LIMITS else "ok" if ratio <= LIMITS[base] else f"above {LIMITS[base]}"
        table.add_row(name, f"{1e3 * median(times):.0f}", base, f"{ratio:.3f}", f"{low:.3f} to {high:.3f}", verdict)
    (Console() if sys.stdout.isatty() else Console(width=120)).print(table)
    result = {
        "benchmark": "command_time",
        "environment": environment(),
        "limits": LIMITS,
        "rounds": rounds,
        "rows": rows,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, result)
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="What the commands of an index take before they have answered.")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks/command_time.json"))
    asked = parser.parse_args()
    main(asked.out, asked.rounds)
