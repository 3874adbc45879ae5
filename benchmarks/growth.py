"""How selection time and memory grow from 500 to 20,000 tokens of 1,024 dimensions, a ninth of them kept.

Every cell runs in a process of its own, so that a peak is that method's alone: the largest resident set less what the process
held with its signals in place, before the method ran.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import tokensieve as ts
from benchmarks.resumed import Resumed
from benchmarks.selection import DIM, SEED, inputs
from tokensieve.bench.clocks import Peak
from tokensieve.core import method_registry
from tokensieve.testing.trial import reduces

TOKENS = (500, 1000, 2000, 5000, 10000, 20000)
SHARE, REPEATS, THREADS, LIMIT_MB, SECONDS = 1 / 9, 5, 1, 1000.0, 900


@torch.no_grad()
def cell(name: str, n: int) -> dict[str, Any]:
    """Runs in a fresh process. Above 5,000 tokens, a first run of more than 10 s is the only one."""
    torch.set_num_threads(THREADS)
    method = method_registry.get_method(name)
    given = inputs(method, 1, n)
    x, keep = given.pop("x"), max(round(n * SHARE), 1)
    ts.reduce(x[:, :32], method, 4, **{k: _first(v, n, 32) for k, v in given.items()})
    times: list[float] = []
    with Peak(x.device) as peak:
        while len(times) < REPEATS and not (times and times[0] > 10 and n > 5000):
            start = time.perf_counter()
            ts.reduce(x, method, keep, **given)
            times.append(time.perf_counter() - start)
    assert peak.bytes is not None, "the peak of a process is read under Linux"
    return {
        "method": name,
        "tokens": n,
        "keep": keep,
        "ms": median(times) * 1e3,
        "runs": len(times),
        "mb": peak.bytes / 2**20,
    }


def _first(value: torch.Tensor, n: int, few: int) -> torch.Tensor:
    """A signal of the first few of ``n`` tokens, to warm up on."""
    return value.narrow(value.shape.index(n), 0, few) if n in value.shape else value


def run(name: str, n: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.growth", "--cell", name, str(n)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=os.environ, check=True)
    except subprocess.TimeoutExpired:
        return {"method": name, "tokens": n, "error": f"longer than {SECONDS} s"}
    except subprocess.CalledProcessError as e:
        return {"method": name, "tokens": n, "error": (e.stderr or str(e)).strip().splitlines()[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def main(out: Path = Path("out/growth.json"), names: Sequence[str] = ()) -> None:
    """Some methods, or all; what ``out`` holds is not measured again."""
    names = names or [n for n in ts.list_methods() if reduces(method_registry.method_class(n))]
    cells = [(name, n) for name in names for n in TOKENS]
    of = {"threads": THREADS, "seed": SEED, "dimensions": DIM}
    found = Resumed.open(out, "tokensieve.growth.2", of)
    for name, n in track(cells, description="growth", console=Console(stderr=True)):
        found.add(f"{name}@{n}", partial(run, name, n))
    table = Table(
        "method", *(f"{n:,}" for n in TOKENS), f"under {LIMIT_MB:g} MB", title="ms / MB above the signals, by tokens"
    )
    for name in names:
        mine = [found.data["rows"][f"{name}@{n}"] for n in TOKENS]
        texts = [r["error"] if "error" in r else f"{r['ms']:.1f} / {r['mb']:.0f}" for r in mine]
        fine = all("error" not in r and r["mb"] < LIMIT_MB for r in mine)
        table.add_row(name, *texts, "yes" if fine else "NO")
    Console(width=max(140, Console().width)).print(table)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--cell"]:
        print(json.dumps(cell(sys.argv[2], int(sys.argv[3]))))
    else:
        main(*map(Path, sys.argv[1:2]), names=sys.argv[2:])
