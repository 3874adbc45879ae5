"""Prefill over the floor: a randomly initialised LLaVA of about 300 M parameters, 576 -> 64 visual tokens.

The floor is the same prompt given only 64 visual tokens, with no selection. Ours is the language model's prefill under the
sieve plus selection, attention rows included. Ratios of medians within one run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import tokensieve as ts
from benchmarks.llava300 import TEXT, build, inputs
from tokensieve.bench.clocks import Watchmaker, now
from tokensieve.bench.floor import Free
from tokensieve.bench.results import environment
from tokensieve.core.method_registry import method_card
from tokensieve.sites.model.structure import find

FAMILIES = ("baseline", "handoff", "prefill", "multistage")
KEEP, REPEATS = 64, 5
LIMITS = {True: 1.10, False: 1.15}
"""Over the floor, for methods at the handoff and for those inside the language model."""


@torch.no_grad()
def floor(model: Any, given: dict[str, torch.Tensor]) -> float:
    short = torch.randn(
        1, TEXT + KEEP, model.config.text_config.hidden_size, device=given["input_ids"].device, dtype=model.dtype
    )
    mask = torch.ones(short.shape[:2], dtype=torch.long, device=short.device)
    began = now(model.device)
    model.model.language_model(inputs_embeds=short, attention_mask=mask, use_cache=True)
    return now(model.device) - began


@torch.no_grad()
def ours(model: Any, given: dict[str, torch.Tensor], stage: ts.Stage) -> tuple[float, float]:
    """(prefill, selection) in seconds."""
    watch, sieve = Watchmaker(find(model)), ts.sieve(model, stage)
    with watch.attached(), sieve, watch.watching(sieve) as split:
        model(**given, use_cache=True, logits_to_keep=1)
    return split.prefill, split.selection


def main(out: Path | None = None, names: Sequence[str] = ()) -> dict[str, Any]:
    """Some methods, or all."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, given = build().to(device), inputs(device)
    size = sum(p.numel() for p in model.parameters()) / 1e6
    rows: dict[str, dict[str, float]] = {}
    handoff = {name: method_card(name).site == "handoff" for f in FAMILIES for name in ts.list_methods(family=f)}
    names = names or [name for name in handoff if method_card(name).site != "encoder"]
    stages = {name: ts.stage(name, keep=KEEP) for name in names}
    free = {name: ts.Stage(Free(), KEEP, "prefill", (s.layer,)) for name, s in stages.items() if not handoff[name]}
    times: dict[str, list[tuple[float, float, float]]] = {name: [] for name in stages}
    # Floor and ours take turns, so that a slow spell of the machine meets both.
    for turn in track(range(REPEATS + 1), description="rounds", console=Console(stderr=True)):
        for name, stage in stages.items():
            base = floor(model, given) if handoff[name] else ours(model, given, free[name])[0]
            prefill, selection = ours(model, given, stage)
            if turn:
                times[name].append((base, prefill, selection))
    for name, taken in times.items():
        base, prefill, selection = (1000 * median(t[i] for t in taken) for i in range(3))
        ratio = median((p + s) / b for b, p, s in taken)
        rows[name] = {"floor ms": base, "prefill ms": prefill, "selection ms": selection, "over floor": ratio}
    table = Table(
        "method",
        "floor ms",
        "prefill ms",
        "selection ms",
        "over floor",
        title=f"{size:.0f} M parameters, 576 -> {KEEP}, {device}",
    )
    for name, row in rows.items():
        limit = LIMITS[handoff[name]]
        mark = " ok" if row["over floor"] <= limit else f" above {limit}"
        table.add_row(name, *(f"{v:.2f}" for v in list(row.values())[:3]), f"{row['over floor']:.3f}{mark}")
    table.caption = "in-LM methods: over the same counts per layer given free"
    Console().print(table)
    result = {"benchmark": "prefill", "environment": environment(), "parameters_m": size, "seed": 0, "rows": rows}
    if out is not None:
        out.write_text(json.dumps(result, indent=1) + "\n")
    return result


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None, sys.argv[2:])
