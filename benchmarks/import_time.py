"""What importing costs: whole processes of `import tokensieve` and `tokensieve --help`, over one of `import torch`.

`python -m benchmarks.import_time` starts each in turn, a round of all before the next; who goes first changes from round to
round. A round in front, which fills the system's file cache, is not counted. A ratio is the median over the rounds of
"this / import torch" within a round, with the 95% interval of a bootstrap over rounds; `import torch` once more is the A/A
line, what the machine makes of no difference at all. What a user waits for before anything happens should be torch, and
little besides: the limit is 1.3.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.before import LEAST, compared
from tokensieve.bench.results import environment
from tokensieve.core.files import write_json

ROUNDS, LIMIT, BASE = 9, 1.3, "import torch"
AGAIN = "import torch, again"
PYTHON = [sys.executable, "-c"]
COMMANDS = {
    BASE: [*PYTHON, "import torch"],
    AGAIN: [*PYTHON, "import torch"],
    "import tokensieve": [*PYTHON, "import tokensieve"],
    "tokensieve --help": [*PYTHON, "from tokensieve.cli.main import main; main()", "--help"],
}


def seconds(command: list[str]) -> float:
    """Of a whole process.

    Raises:
        RuntimeError: it failed; the error holds what it said.
    """
    start = perf_counter()
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    taken = perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()}")
    return taken


def measure(rounds: int, commands: Mapping[str, list[str]] = COMMANDS) -> dict[str, list[float]]:
    """Seconds of each command by round."""
    names = list(commands)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds + 1):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            taken[name].append(seconds(commands[name]))
    return {name: times[1:] for name, times in taken.items()}


def main(out: Path, rounds: int = ROUNDS) -> dict[str, Any]:
    """Measure, print a table, and write ``out``."""
    if rounds < LEAST:
        raise ValueError(f"--rounds {rounds}: an interval asks for {LEAST} or more")
    taken = measure(rounds)
    table = Table("", "ms", f"over {BASE}", "95%", "", title=f"whole processes, medians of {rounds} rounds")
    rows = {}
    for name, times in taken.items():
        rows[name] = {"ms": [1e3 * s for s in times], **compared(times, taken[BASE])}
        ratio, low, high = (rows[name][key] for key in ("ratio", "low", "high"))
        verdict = "" if name in (BASE, AGAIN) else "ok" if ratio <= LIMIT else f"above {LIMIT}"
        table.add_row(name, f"{np.median(rows[name]['ms']):.0f}", f"{ratio:.3f}", f"{low:.3f} to {high:.3f}", verdict)
    (Console() if sys.stdout.isatty() else Console(width=120)).print(table)
    result = {"benchmark": "import_time", "environment": environment(), "limit": LIMIT, "rounds": rounds, "rows": rows}
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, result)
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="What importing costs, over `import torch`.")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks/import_time.json"))
    asked = parser.parse_args()
    main(asked.out, asked.rounds)
