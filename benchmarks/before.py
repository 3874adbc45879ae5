"""What a change costs: this code against that of a commit before.

`python -m benchmarks.before --before COMMIT` times four things (`--only` some of them). `prefill`: 576 visual tokens of which
64 are kept, in a randomly initialised LLaVA of about 300 M parameters, without the vision encoder, selection included.
`decode`: a token over a cache of which a quarter is kept. `selection`: methods on plain arrays, 576 tokens to 64. `search`:
candidates and exact rerank, and all documents, in indexes of 2,000 random ones. The commit is checked out into a
folder of its own for the time of the run. Each side is a process that stays alive and is asked for one time at a time, the
same of each side in turn, so that all meet every slow spell of the machine; who goes first changes from round to round. A
third process runs this code once more: its ratio to the other of the same code, the A/A line, is what the machine makes of
no difference at all.

A ratio is the median over the rounds of "now / before" within a round, with the 95% interval of a bootstrap over rounds. It is
fine up to 1.02, or where the interval contains 1.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from tokensieve.bench.results import environment
from tokensieve.core.files import write_json

ROOT = Path(__file__).parent.parent
ROUNDS, LEAST, LIMIT, DRAWS = 9, 7, 1.02, 10_000
SIDES = ("before", "now", "again")
GROUPS = ("prefill", "decode", "selection", "search")
COMMAND = [sys.executable, str(ROOT / "benchmarks" / "before_child.py")]


class Child:
    """A side: a process that times what it is asked for."""

    def __init__(self, tree: Path, only: Sequence[str] = GROUPS):
        env = os.environ | {"PYTHONPATH": str(tree)}
        self.process = subprocess.Popen(
            [*COMMAND, *only], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )
        self.tree = tree

    def begun(self) -> dict[str, Any]:
        """What it says of itself once it is warm."""
        said = self._answer()
        if not Path(said["tokensieve"]).resolve().is_relative_to(self.tree.resolve()):
            raise RuntimeError(f"{said['tokensieve']} was imported, and not what is in {self.tree}")
        return said

    def seconds(self, what: str) -> float:
        """Of one of the things that it said it can time."""
        assert self.process.stdin is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"the process on {self.tree} ended with {self.process.wait()}; what it said stands above"
            )
        return json.loads(line)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """The tree of a commit, in a folder that is there for a while.

    Raises:
        ValueError: there is no such commit.
    """
    found = subprocess.run(
        ["git", "rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}"], cwd=ROOT, capture_output=True, text=True
    )
    if found.returncode:
        raise ValueError(f"--before {commit}: this repository has no such commit")
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "before"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(tree), commit], cwd=ROOT, check=True)
        try:
            yield tree
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=ROOT, check=True)


def measure(before: Path, rounds: int, only: Sequence[str]) -> dict[str, dict[str, list[float]]]:
    """Seconds of each side, what was measured, and round."""
    with ExitStack() as stack:
        children = {}
        for side in SIDES:
            children[side] = Child(before if side == "before" else ROOT, only)
            stack.callback(children[side].end)
            said = children[side].begun()  # one after the other: warming up, they would disturb each other
        taken: dict[str, dict[str, list[float]]] = {side: {what: [] for what in said["things"]} for side in SIDES}
        for turn in track(range(rounds), description="rounds", console=Console(stderr=True)):
            first = turn % len(SIDES)
            for what in said["things"]:
                for side in SIDES[first:] + SIDES[:first]:
                    taken[side][what].append(children[side].seconds(what))
    return taken


def compared(over: list[float], under: list[float]) -> dict[str, float]:
    """The median ratio of two sides within rounds, and its 95% interval."""
    ratios = np.array(over) / np.array(under)
    drawn = np.random.default_rng(0).choice(ratios, (DRAWS, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    return {"ratio": float(np.median(ratios)), "low": float(low), "high": float(high)}


def fine(row: dict[str, float]) -> bool:
    return row["ratio"] <= LIMIT or row["low"] <= 1 <= row["high"]


def main(before: str, out: Path, rounds: int = ROUNDS, only: Sequence[str] = GROUPS) -> dict[str, Any]:
    """Measure, print a table, and write ``out``."""
    if rounds < LEAST:
        raise ValueError(f"--rounds {rounds}: an interval asks for {LEAST} or more")
    if set(only) - set(GROUPS):
        raise ValueError(f"--only {' '.join(sorted(set(only) - set(GROUPS)))}; it must be of {', '.join(GROUPS)}")
    with checked_out(before) as tree:
        taken = measure(tree, rounds, only)
    rows, table = {}, Table("", "ms before", "ms now", "now / before", "95%", "A/A", "95%", "")
    table.title = f"before: {before}; {rounds} rounds"
    for what in taken["now"]:
        now, same = (compared(taken[a][what], taken[b][what]) for a, b in (("now", "before"), ("again", "now")))
        rows[what] = {"ms": {side: [1e3 * s for s in taken[side][what]] for side in SIDES}, "before": now, "a/a": same}
        times = (f"{np.median(rows[what]['ms'][side]):.2f}" for side in ("before", "now"))
        shown = (text for r in (now, same) for text in (f"{r['ratio']:.3f}", f"{r['low']:.3f} to {r['high']:.3f}"))
        table.add_row(what, *times, *shown, "ok" if fine(now) else f"above {LIMIT}")
    (Console() if sys.stdout.isatty() else Console(width=120)).print(table)
    result = {"benchmark": "before", "environment": environment(), "before": before, "rounds": rounds, "rows": rows}
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, result)
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="What a change costs, against a commit before it.")
    parser.add_argument("--before", required=True, help="the commit to compare with")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "before.json")
    parser.add_argument("--only", nargs="+", default=GROUPS, help=f"of {', '.join(GROUPS)}")
    asked = parser.parse_args()
    main(asked.before, asked.out, asked.rounds, asked.only)
