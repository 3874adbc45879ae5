"""Selection time of every registered method on random tokens of 1,024 dimensions, without any model.

Medians of wall time, each method interleaved with a bare top-k on a given score, so that a busy machine slows both; with two
threads and with one, of which the faster counts (threads that wait for each other on a busy machine can cost a hundredfold).
`share` is the processor time over wall time and threads: clearly below 1 means that others used the machine meanwhile.
Limits are for batch 1, whose row is another one of the batch of 8 each time: the same row over and over would lie in the
processor's cache. Video methods are measured on 32 frames as well.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.nn.functional import normalize

import tokensieve as ts
from tokensieve.bench.results import environment
from tokensieve.core import method_registry
from tokensieve.core.method import Method
from tokensieve.core.reduction import Reduction
from tokensieve.testing.trial import reduces

SIZES = (((24, 24), 64), ((48, 60), 320))
FRAMES, VIDEO = 32, ((32 * 14, 14), 627)
DIM, HEADS, TEXT = 1024, 16, 32
REPEATS, WARM, SEED, THREADS = 5, 1, 0, (2, 1)
LIMITS = {576: {False: 5.0, True: 25.0}, 2880: {False: 10.0, True: 400.0}, 6272: {False: 300.0, True: 300.0}}
"""Milliseconds by tokens, for methods that only score tokens and for those that compare them, to choose or to merge."""
BATCH, BATCH_LIMIT = 8, 8.0


def inputs(method: Method, batch: int, n: int, seed: int = SEED) -> dict[str, Any]:
    """Random signals for all of a method's needs, and the features."""
    draw = torch.Generator().manual_seed(seed)
    shapes = {
        "cls_attention": (batch, HEADS, n),
        "received_attention": (batch, HEADS, n),
        "last_attention": (batch, HEADS, n),
        "text_attention": (batch, HEADS, TEXT, n),
        "text_text": (batch, TEXT, TEXT),
        "text": (batch, TEXT, DIM),
        "keys": (batch, n, DIM),
        "values": (batch, n, DIM),
        "relevance": (batch, n),
        "cls_similarity": (batch, HEADS, n),
        "pagerank": (batch, HEADS, n),
        "entropy": (batch, n),
        "ranking": (batch, n),
        "idf": (batch, n),
        "stop": (batch, n),
        "neurons": (batch, n, DIM),
        "text_neurons": (batch, TEXT, DIM),
    }
    out = {"x": torch.randn(batch, n, DIM, generator=draw)}
    for name in {need.name for need in method.needs} & set(shapes):
        made = torch.randn(shapes[name], generator=draw)
        out[name] = made.softmax(-1) if name.endswith(("attention", "text_text")) else made
    if "word" in {need.name for need in method.needs}:
        out["word"] = (torch.arange(n) // 2).expand(batch, -1)
    if n % FRAMES == 0 and method_registry.method_card(method.name).family == "video":
        out["frame"] = torch.arange(FRAMES).repeat_interleave(n // FRAMES).expand(batch, -1)
    return out


def top_k(score: Tensor, keep: int) -> Reduction:
    """The least any method must do: rank a given score, and say what was kept."""
    return Reduction.keep(torch.zeros_like(score, dtype=torch.bool).scatter_(1, score.topk(keep).indices, True))


def clock(*runs: Callable[[], Any]) -> list[tuple[float, float]]:
    """Median wall milliseconds of each, interleaved, and the processor time each got per wall time."""
    wall: list[list[float]] = [[] for _ in runs]
    busy: list[list[float]] = [[] for _ in runs]
    gc.disable()
    for turn in range(WARM + REPEATS):
        for i, run in enumerate(runs):
            start, used = time.perf_counter(), time.process_time()
            run()
            if turn >= WARM:
                wall[i].append((time.perf_counter() - start) * 1e3)
                busy[i].append((time.process_time() - used) * 1e3)
    gc.enable()
    return [(median(w), sum(b) / max(sum(w), 1e-9)) for w, b in zip(wall, busy, strict=True)]


@torch.no_grad()
def measure(name: str, grid: tuple[int, int], keep: int) -> dict[str, Any]:
    method, n = method_registry.get_method(name), grid[0] * grid[1]

    given, score = inputs(method, BATCH, n), torch.rand(1, n, generator=torch.Generator().manual_seed(SEED))
    row = cycle(range(BATCH))

    def alone() -> Reduction:
        i = next(row)
        one = {key: value[i : i + 1] for key, value in given.items()}
        return ts.reduce(one.pop("x"), method, keep, grid=grid, **one)

    def together() -> Reduction:
        return ts.reduce(given["x"], method, keep, grid=grid, **{k: v for k, v in given.items() if k != "x"})

    limit = LIMITS[n][method.pairs or not together().drops]
    found = []
    for threads in THREADS:
        torch.set_num_threads(threads)
        (one, share), (bare, _), (eight, _) = clock(alone, lambda: top_k(score, keep), together)
        found.append(
            {
                "ms": one,
                "threads": threads,
                "share": share / threads,
                "over_top_k": one / bare,
                "ms_batch_8": eight,
                "batch_8_over_1": eight / one,
                "limit_ms": limit,
                "pass": one <= limit and eight / one <= BATCH_LIMIT,
            }
        )
    best, other = sorted(found, key=lambda f: f["ms"])
    return {"method": name, "tokens": n, "keep": keep, **best, "ms_other": other["ms"]}


def direct(x: Tensor, keep: int) -> list[int]:
    """DivPrune by its definition on one row: all N x N distances, then greedy max-min."""
    unit = normalize(x, dim=1)
    far = 1 - unit @ unit.T
    first = far.clone().fill_diagonal_(torch.inf).amin(1).argmax()
    chosen, least = [int(first)], far[first].clone()
    for _ in range(keep - 1):
        least[chosen] = -torch.inf
        chosen.append(int(least.argmax()))
        least = least.minimum(far[chosen[-1]])
    return sorted(chosen)


@torch.no_grad()
def divprune(grid: tuple[int, int], keep: int) -> dict[str, Any]:
    n = grid[0] * grid[1]
    x = inputs(method_registry.get_method("divprune"), 1, n)["x"]
    (ours, share), (theirs, _) = clock(lambda: ts.reduce(x, "divprune", keep), lambda: direct(x[0], keep))
    same = ts.reduce(x, "divprune", keep).kept[0].tolist() == direct(x[0], keep)
    return {"tokens": n, "keep": keep, "ms": ours, "share": share, "direct_ms": theirs, "same_indices": same}


def main(out: Path | None = None, names: Sequence[str] = ()) -> None:
    """Some methods, or all."""
    console = Console(stderr=True)
    names = names or [n for n in ts.list_methods() if reduces(method_registry.method_class(n))]
    cells = [(name, grid, keep) for grid, keep in SIZES for name in names]
    cells += [(name, *VIDEO) for name in ts.list_methods(family="video") if name in names]
    rows = [measure(*cell) for cell in track(cells, description="selection", console=console)]
    torch.set_num_threads(1)
    against = [divprune(grid, keep) for grid, keep in SIZES]
    console = Console()
    for grid, keep in (*SIZES, VIDEO):
        n = grid[0] * grid[1]
        columns = ("method", "ms", "limit", "over top-k", "ms at batch 8", "8 over 1", "threads", "share", "")
        table = Table(*columns, title=f"{n} -> {keep}")
        for r in (r for r in rows if r["tokens"] == n):
            times = (f"{r['ms']:.2f}", f"{r['limit_ms']:g}", f"{r['over_top_k']:.1f}", f"{r['ms_batch_8']:.1f}")
            kept = "pass" if r["pass"] else "FAIL"
            table.add_row(
                r["method"], *times, f"{r['batch_8_over_1']:.1f}", str(r["threads"]), f"{r['share']:.2f}", kept
            )
        console.print(table)
    table = Table("tokens", "ours ms", "direct N x N ms", "ratio", "same indices", title="divprune")
    for r in against:
        ratio = f"{r['ms'] / r['direct_ms']:.2f}"
        table.add_row(
            f"{r['tokens']} -> {r['keep']}", f"{r['ms']:.1f}", f"{r['direct_ms']:.1f}", ratio, str(r["same_indices"])
        )
    console.print(table)
    if out is not None:
        record = {
            "format": "tokensieve.selection.1",
            **environment(),
            "threads": THREADS,
            "seed": SEED,
            "dimensions": DIM,
            "repeats": REPEATS,
        }
        out.write_text(json.dumps({**record, "rows": rows, "divprune": against}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None, sys.argv[2:])
