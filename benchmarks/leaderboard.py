"""One page for all methods: accuracy kept on the testbed at four budgets, by kind of question, over three seeds.

`python -m benchmarks.leaderboard` measures what `out/leaderboard.json` does not hold yet and writes
docs/measured/leaderboard.md. A seed decides the held-out questions and what methods draw; all methods get the same.
Retention is accuracy over that of the full model.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from textwrap import fill
from typing import Any

from rich.console import Console
from rich.progress import track

import tokensieve as ts
from benchmarks.resumed import Resumed, weights
from tokensieve import testbed
from tokensieve.bench.run import BASELINES
from tokensieve.core.needs import only_given
from tokensieve.core.plan import Plan, applied, stages_of
from tokensieve.sites.cost import encoder_tokens, of_tokens
from tokensieve.sites.model.structure import find

PAGE = Path(__file__).parent.parent / "docs" / "measured" / "leaderboard.md"
FORMAT = "tokensieve.leaderboard.1"
BUDGETS, SEEDS, PER_KIND, BATCH = (192, 128, 64, 32), (0, 1, 2), 10, 25
FAMILIES = ("encoder", "handoff", "prefill", "multistage")


class CheckContext:
    """The testbed model and, for each seed, its questions."""

    def __init__(self) -> None:
        self.model, self.processor = testbed.load()
        self.anatomy = find(self.model)
        self.items = {s: testbed.test_set(n_scenes=100, questions_per_kind=PER_KIND, seed=100 + s) for s in SEEDS}

    def measure(self, whole: Plan, seed: int) -> dict[str, Any]:
        """Accuracy by kind, tokens, the share of FLOPs, and milliseconds of selection per image."""
        items = self.items[seed]
        with ts.sieve(self.model, whole, seed=seed) as sieve:
            sieve.timed = True
            right, seen = [], []
            for start in range(0, len(items), BATCH):
                right += testbed.correct(self.model, self.processor, items[start : start + BATCH], batch=BATCH)
                assert sieve.last is not None
                seen.append(sieve.last.layer_tokens)
            layers = [mean(tokens) for tokens in zip(*seen, strict=True)]  # batches are of one size
        inside = next((s for s in whole.stages if s.site == "encoder"), None)
        in_encoder = [576.0] * len(self.anatomy.vision.layers)
        if inside is not None:
            in_encoder = encoder_tokens(self.anatomy, inside, 576, round(layers[0]))
        kinds: dict[str, list[bool]] = {}
        for ok, item in zip(right, items, strict=True):
            kinds.setdefault(item.kind, []).append(ok)
        return {
            "accuracy": {kind: sum(ok) / len(ok) for kind, ok in kinds.items()},
            "final": layers[-1],
            "mean": mean(layers),
            "flops": of_tokens(self.anatomy, layers, [in_encoder], 576, 12).share,
            "ms": 1000 * sieve.seconds / len(items),
        }


def names() -> list[str]:
    """Every method for images; of a system of several stages the whole, not the later ones alone."""
    named = {n for f in FAMILIES for n in ts.list_methods(family=f) if not only_given(ts.get_method(n).needs)}
    later = {s.method.name for n in named for s in stages_of(ts.get_method(n), 0.5)[1:]}
    alone = {n for n in named if not stages_of(ts.get_method(n), 0.5)} - {"fastv"}
    return [*BASELINES, *sorted(named - (later & alone))]


def measure(file: Path) -> dict[str, Any]:
    """All cells, resumed from ``file``."""
    found, bed = Resumed.open(file, FORMAT, weights(testbed.path() / "model.safetensors")), CheckContext()
    cells = [("full", 1.0)] + [(name, keep) for keep in BUDGETS for name in names()]
    for name, keep in track(cells, description="leaderboard", console=Console(stderr=True)):
        for seed in SEEDS:
            run = partial(bed.measure, applied("uniform" if name == "full" else name, keep), seed)
            found.add(f"{name}@{keep}#{seed}", run, f"{name}, keep {keep}")
    return found.data


def page(data: dict[str, Any]) -> str:
    """The page as Markdown."""
    full = [data["rows"][f"full@1.0#{seed}"]["accuracy"] for seed in SEEDS]
    kinds = list(full[0])
    head = ["method", "final", "mean", "FLOPs", *kinds, "all", "±", "selection ms"]
    what = (
        f"Accuracy kept, in % of the full model's, on the packaged testbed: {len(SEEDS)} seeds of {PER_KIND * len(kinds)} "
        "held-out questions each, the same for all methods; ± is the standard deviation of `all` between seeds. `final` and "
        "`mean` are visual tokens in the last layer and over the language model's layers: compare rows at equal FLOPs, not at "
        f"equal labels. Milliseconds of selection are per image in batches of {BATCH}. The testbed is a 2.5 M-parameter model "
        "on generated scenes: it finds mistakes and compares methods, it does not predict a real model's accuracy."
    )
    where = (
        f"Full model: {', '.join(f'{k} {100 * mean(f[k] for f in full):.1f}%' for k in kinds)}. {data['cpu']}, "
        f"{data['threads']} threads, torch {data['versions']['torch']}, transformers {data['versions']['transformers']}."
    )
    out = ["# Leaderboard", "", fill(what, 128), "", fill(where, 128)]
    for keep in BUDGETS:
        rows = [_row(data, name, keep, full, kinds) for name in names() if f"{name}@{keep}#{SEEDS[-1]}" in data["rows"]]
        rows.sort(key=lambda r: -r[1])
        bar = next(value for name, value, _ in rows if name == "random")
        out += ["", f"## keep = {keep}", "", "| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
        for name, value, cells in rows:
            shown = f"**{name}**" if name in BASELINES else name + (" ↓" if value <= bar else "")
            out.append(f"| {shown} | " + " | ".join(cells) + " |")
    out += ["", "↓: not above random at this label. Baselines are bold."]
    if data["left"]:
        out += ["", "## Not measured here", "", *(f"- `{name}`: {why}" for name, why in sorted(data["left"].items()))]
    return "\n".join(out) + "\n"


def _row(
    data: dict[str, Any], name: str, keep: int, full: list[dict[str, float]], kinds: list[str]
) -> tuple[str, float, list[str]]:
    runs = [data["rows"][f"{name}@{keep}#{seed}"] for seed in SEEDS]
    kept = [{k: 100 * r["accuracy"][k] / f[k] for k in kinds} for r, f in zip(runs, full, strict=True)]
    whole = [mean(k.values()) for k in kept]
    cells = [f"{mean(r['final'] for r in runs):.0f}", f"{mean(r['mean'] for r in runs):.0f}"]
    cells += [f"{100 * mean(r['flops'] for r in runs):.0f}%"]
    cells += [f"{mean(k[kind] for k in kept):.1f}" for kind in kinds]
    return (
        name,
        mean(whole),
        [*cells, f"{mean(whole):.1f}", f"{stdev(whole):.1f}", f"{mean(r['ms'] for r in runs):.2f}"],
    )


def main(file: Path = Path("out/leaderboard.json")) -> None:
    PAGE.write_text(page(measure(file)), encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
