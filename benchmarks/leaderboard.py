"""One page for all methods: accuracy kept on each testbed at four budgets, by kind of question, over three seeds.

`python -m benchmarks.leaderboard [NAME ...]` measures what `out/leaderboard-NAME.json` does not hold yet of a testbed of
`benchmarks.beds`, the packaged one by default, and writes its part of docs/measured/leaderboard.md. A seed decides the held-out
questions and what methods draw; all methods get the same. Retention is accuracy over that of the full model. Kinds of question
that the full model itself does not answer are left out, and not asked.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from textwrap import fill as wrapped
from typing import Any

from rich.console import Console
from rich.progress import track

import tokensieve as ts
from benchmarks.beds import BEDS, LEFT_OUT, Bed, by_kind, told, visual
from benchmarks.pages import fill
from benchmarks.resumed import Resumed, weights
from tokensieve.bench.run import BASELINES
from tokensieve.core.needs import only_given
from tokensieve.core.plan import Plan, applied, stages_of
from tokensieve.sites.cost import encoder_tokens, of_tokens
from tokensieve.sites.model.structure import find

PAGE = Path(__file__).parent.parent / "docs" / "measured" / "leaderboard.md"
FORMAT = "tokensieve.leaderboard.2"
BATCH = 25
FAMILIES = ("encoder", "handoff", "prefill", "multistage")


class CheckContext:
    """A testbed's model and, for each seed, its questions."""

    def __init__(self, bed: Bed) -> None:
        self.bed = bed
        self.model, self.processor = bed.load()
        self.anatomy, self.tokens = find(self.model), visual(self.model)
        self.items = {s: bed.test_set(10 * bed.per_kind, bed.per_kind, 100 + s) for s in bed.seeds}
        self.text = bed.text(self.processor, [i for items in self.items.values() for i in items])

    def ask(self, kinds: list[str]) -> None:
        """From now on of these kinds of question alone."""
        self.items = {s: [i for i in items if i.kind in kinds] for s, items in self.items.items()}

    def measure(self, whole: Plan, seed: int) -> dict[str, Any]:
        """Accuracy by kind, tokens, the share of FLOPs, and milliseconds of selection per image."""
        items = self.items[seed]
        with ts.sieve(self.model, whole, seed=seed) as sieve:
            sieve.timed = True
            right, seen = [], []
            for start in range(0, len(items), BATCH):
                some = items[start : start + BATCH]
                right += self.bed.correct(self.model, self.processor, some, BATCH)
                assert sieve.last is not None
                seen += [sieve.last.layer_tokens] * len(some)
            layers = [mean(tokens) for tokens in zip(*seen, strict=True)]
        inside = next((s for s in whole.stages if s.site == "encoder"), None)
        in_encoder = [float(self.tokens)] * len(self.anatomy.vision.layers)
        if inside is not None:
            in_encoder = encoder_tokens(self.anatomy, inside, self.tokens, round(layers[0]))
        return {
            "accuracy": by_kind(items, right),
            "final": layers[-1],
            "mean": mean(layers),
            "flops": of_tokens(self.anatomy, layers, [in_encoder], self.tokens, self.text).share,
            "ms": 1000 * sieve.seconds / len(items),
        }


def names() -> list[str]:
    """Every method for images; of a system of several stages the whole, not the later ones alone."""
    named = {n for f in FAMILIES for n in ts.list_methods(family=f) if not only_given(ts.get_method(n).needs)}
    later = {s.method.name for n in named for s in stages_of(ts.get_method(n), 0.5)[1:]}
    alone = {n for n in named if not stages_of(ts.get_method(n), 0.5)} - {"fastv"}
    return [*BASELINES, *sorted(named - (later & alone))]


def key(name: str, keep: int, seed: int) -> str:
    """Of a cell; ``keep`` is 0 of the full model."""
    return f"{name}@{keep}#{seed}" if keep else f"full#{seed}"


def measure(bed: Bed, file: Path) -> dict[str, Any]:
    """All cells of a testbed, resumed from ``file``."""
    asked = {"bed": bed.name, "seeds": list(bed.seeds), "per_kind": bed.per_kind}
    found, here = Resumed.open(file, FORMAT, asked | weights(bed.weights())), CheckContext(bed)
    found.data.update(keep=[round(share * here.tokens) for share in bed.shares], tokens=here.tokens)
    for seed in bed.seeds:
        found.add(key("full", 0, seed), partial(here.measure, applied("uniform", 1.0), seed))
    here.ask(list(told(full(found.data))))
    if not any(here.items.values()):
        return found.data
    cells = [(name, keep) for keep in found.data["keep"] for name in names()]
    for name, keep in track(cells, description=f"leaderboard, {bed.name}", console=Console(stderr=True)):
        for seed in bed.seeds:
            found.add(key(name, keep, seed), partial(here.measure, applied(name, keep), seed), f"{name}, keep {keep}")
    return found.data


def full(data: dict[str, Any]) -> list[dict[str, float]]:
    """The full model's accuracy by kind, for each seed."""
    return [data["rows"][key("full", 0, seed)]["accuracy"] for seed in data["seeds"]]


def part(bed: Bed, data: dict[str, Any]) -> str:
    """A testbed's part of the page, as Markdown."""
    reach, seeds = full(data), data["seeds"]
    every = {kind: mean(f[kind] for f in reach) for kind in reach[0]}
    kinds = list(told(reach))
    out = ["", wrapped(bed.about, 128), ""]
    said = f"Full model: {', '.join(f'{k} {100 * v:.1f}%' for k, v in every.items())}."
    missing = [k for k in every if k not in kinds]
    if missing:
        said += (
            f" Left out of the tables, below {100 * LEFT_OUT:.0f}% with all tokens: {', '.join(missing)}; what a method loses of "
            "these says nothing."
        )
    said += (
        f" {len(seeds)} seeds of {data['per_kind'] * len(kinds)} held-out questions each, the same for all methods. "
        f"{data['cpu']}, {data['threads']} threads, torch {data['versions']['torch']}, transformers "
        f"{data['versions']['transformers']}."
    )
    out.append(wrapped(said, 128))
    head = ["method", "final", "mean", "FLOPs", *kinds, "all", "±", "selection ms"]
    for keep in data["keep"] if kinds else ():
        rows = [_row(data, name, keep, reach, kinds) for name in names() if key(name, keep, seeds[-1]) in data["rows"]]
        rows.sort(key=lambda r: -r[1])
        bar = next(value for name, value, _ in rows if name == "random")
        title = f"### {bed.name}, {keep} of {data['tokens']} visual tokens"
        out += ["", title, "", "| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
        for name, value, cells in rows:
            shown = f"**{name}**" if name in BASELINES else name + (" ↓" if value <= bar else "")
            out.append(f"| {shown} | " + " | ".join(cells) + " |")
    if data["left"]:
        out += ["", f"### {bed.name}, not measured", ""]
        out += [f"- `{name}`: {why}" for name, why in sorted(data["left"].items())]
    return "\n".join([*out, ""])


def _row(
    data: dict[str, Any], name: str, keep: int, reach: list[dict[str, float]], kinds: list[str]
) -> tuple[str, float, list[str]]:
    runs = [data["rows"][key(name, keep, seed)] for seed in data["seeds"]]
    kept = [{k: 100 * r["accuracy"][k] / f[k] for k in kinds} for r, f in zip(runs, reach, strict=True)]
    whole = [mean(k.values()) for k in kept]
    cells = [f"{mean(r['final'] for r in runs):.0f}", f"{mean(r['mean'] for r in runs):.0f}"]
    cells += [f"{100 * mean(r['flops'] for r in runs):.0f}%"]
    cells += [f"{mean(k[kind] for k in kept):.1f}" for kind in kinds]
    return (
        name,
        mean(whole),
        [*cells, f"{mean(whole):.1f}", f"{stdev(whole):.1f}", f"{mean(r['ms'] for r in runs):.2f}"],
    )


def main(asked: list[str], folder: Path = Path("out"), page: Path = PAGE) -> None:
    for name in asked or ["packaged"]:
        if name not in BEDS:
            raise SystemExit(f"{name!r} is no testbed; they are {', '.join(BEDS)}")
        bed = BEDS[name]
        fill(page, bed.name, part(bed, measure(bed, folder / f"leaderboard-{name}.json")))


if __name__ == "__main__":
    main(sys.argv[1:])
