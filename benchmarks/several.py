"""The leaderboard of prompts of several pictures: clips, pairs, and pictures in crops, on the testbed's second model.

`python -m benchmarks.several` measures what `out/several.json` does not hold yet and writes docs/measured/several.md; about ten
minutes on one core. Accuracy stands as it is, beside that of the full model and of the most frequent training answer.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from statistics import mean
from textwrap import fill
from typing import Any

from rich.console import Console
from rich.progress import track

import tokensieve as ts
from benchmarks.resumed import Resumed, weights
from tokensieve import testbed
from tokensieve.bench.run import BASELINES
from tokensieve.core.plan import Plan, applied
from tokensieve.sites.cost import of_tokens
from tokensieve.sites.model.structure import find
from tokensieve.testbed import PATCHES, PICTURES, Several, onevision

PAGE = Path(__file__).parent.parent / "docs" / "measured" / "several.md"
FORMAT = "tokensieve.several.1"
SEED, TEXT = 50, 12
BATCH = {"clip": 6, "pair": 20, "anyres": 10}
EACH = {"clip": 12, "pair": 20, "anyres": 8}
BUDGETS = {"clip": (288, 72), "pair": (64, 16), "anyres": (288, 72)}
IMAGE = ("visionzip", "divprune", "fastv")
METHODS = {
    "clip": (*BASELINES, *ts.list_methods(family="video"), *IMAGE),
    "pair": (*BASELINES, *IMAGE, "fastervlm", "cdpruner", "sparsevlm"),
    "anyres": (*BASELINES, "globalcom2", "hired", "token-correlation", *IMAGE, "fastervlm"),
}
TITLES = {
    "clip": "Clips of eight frames",
    "pair": "Pairs of pictures (tokens for each picture)",
    "anyres": "Large pictures as a thumbnail and four crops",
}
DRAWS = {"clip": testbed.clip_set, "pair": testbed.pair_set, "anyres": testbed.anyres_set}


def items(form: str, each: int, seed: int = SEED) -> list[Several]:
    """Held-out questions, each kind equally often."""
    return DRAWS[form](number=60, each=each, seed=seed)


class CheckContext:
    """The model of several pictures and its questions."""

    def __init__(self) -> None:
        self.model, self.reader = testbed.load_several()
        self.anatomy = find(self.model)
        self.items = {form: items(form, each) for form, each in EACH.items()}

    def measure(self, form: str, whole: Plan) -> dict[str, Any]:
        """Accuracy by kind, tokens of a prompt, the share of FLOPs, and milliseconds of selection per prompt."""
        asked, right, seen = self.items[form], [], []
        with ts.sieve(self.model, whole, seed=SEED) as sieve:
            sieve.timed = True
            for start in range(0, len(asked), BATCH[form]):
                group = asked[start : start + BATCH[form]]
                right += testbed.correct(self.model, self.reader, group, batch=BATCH[form])
                assert sieve.last is not None
                seen.append(sieve.last.of_prompts(len(group)))
        layers = [mean(tokens) for tokens in zip(*seen, strict=True)]
        assert self.anatomy.vision is not None
        blocks = [float(PATCHES)] * len(self.anatomy.vision.layers)
        cost = of_tokens(self.anatomy, layers, [blocks] * PICTURES[form], onevision.TOKENS[form], TEXT)
        return {
            "accuracy": _by_kind(asked, right),
            "final": layers[-1],
            "mean": mean(layers),
            "flops": cost.flops / cost.full_flops,
            "ms": 1000 * sieve.seconds / len(asked),
        }

    def prior(self, form: str) -> dict[str, float]:
        """Accuracy by kind of the most frequent training answer to a question's template."""
        usual = testbed.usual_answers(form)
        asked = self.items[form]
        return _by_kind(asked, [usual.get(i.question.template) == i.answer for i in asked])


def _by_kind(asked: list[Several], right: list[bool]) -> dict[str, float]:
    kinds: dict[str, list[bool]] = {}
    for ok, item in zip(right, asked, strict=True):
        kinds.setdefault(item.kind, []).append(ok)
    return {kind: sum(ok) / len(ok) for kind, ok in kinds.items()}


def measure(file: Path) -> dict[str, Any]:
    """All cells, resumed from ``file``."""
    found, bed = Resumed.open(file, FORMAT, weights(testbed.several_path() / "model.safetensors")), CheckContext()
    found.data["prior"] = {form: bed.prior(form) for form in METHODS}
    for form, keep, name in track(_cells(), description="several", console=Console(stderr=True)):
        run = partial(bed.measure, form, applied("uniform" if name == "full" else name, keep))
        found.add(f"{form} {name}@{keep}", run)
    return found.data


def _cells() -> list[tuple[str, int | float, str]]:
    """(form, budget, method), the full model first and the smallest budgets, where methods differ most, next."""
    cells: list[tuple[str, int | float, str]] = [(form, 1.0, "full") for form in METHODS]
    for rank in (-1, 0):
        cells += [(form, BUDGETS[form][rank], name) for form in METHODS for name in METHODS[form]]
    return cells


def page(data: dict[str, Any]) -> str:
    """The page as Markdown."""
    what = (
        "Accuracy in % of questions that the testbed's second model, a LLaVA-OneVision of 2.5 M parameters, answers about "
        "clips, pairs of pictures, and large pictures in crops. `full` keeps every token; `prior` always gives the most "
        "frequent training answer, so a kind whose full accuracy is near its prior says nothing about methods. `±` is the "
        "standard error of `all` from the number of questions alone: differences below twice that are noise. `mean` is "
        "visual tokens of a prompt over the language model's layers and FLOPs those of its prefill: compare rows at equal "
        "FLOPs, not at equal labels. `uniform` and `pool` take tokens in the order of the prompt, for these have no one grid."
    )
    where = (
        f"{data['cpu']}, {data['threads']} threads, torch {data['versions']['torch']}, transformers "
        f"{data['versions']['transformers']}."
    )
    out = ["# Several pictures", "", fill(what, 128), "", fill(where, 128)]
    for form, names in METHODS.items():
        kinds = list(data["prior"][form])
        head = ["method", "final", "mean", "FLOPs", *kinds, "all", "±", "selection ms"]
        number = f"{EACH[form]} questions of each kind."
        full = _row(data["rows"][f"{form} full@1.0"], EACH[form])
        prior = [f"{100 * p:.0f}" for p in (*data["prior"][form].values(), mean(data["prior"][form].values()))]
        out += ["", f"## {TITLES[form]}", "", number]
        for keep in BUDGETS[form]:
            out += ["", f"### keep = {keep}", "", "| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
            out += [f"| *full* | {' | '.join(full)} |", f"| *prior* | | | | {' | '.join(prior)} | | |"]
            rows = {n: data["rows"][key] for n in names if (key := f"{form} {n}@{keep}") in data["rows"]}
            bar = _mean(rows["random"]) if "random" in rows else 0.0
            for name, row in sorted(rows.items(), key=lambda item: -_mean(item[1])):
                shown = f"**{name}**" if name in BASELINES else name + (" ↓" if _mean(row) <= bar else "")
                out.append(f"| {shown} | {' | '.join(_row(row, EACH[form]))} |")
    missing = [f"`{f} {n}@{k}`" for f, k, n in _cells() if not any(f"{f} {n}@{k}" in data[d] for d in ("rows", "left"))]
    out += ["", "↓: not above random at this label. Baselines are bold."]
    if missing:
        out += ["", fill(f"Not yet measured: {', '.join(missing)}.", 128)]
    if data["left"]:
        out += ["", "## Not measured here", "", *(f"- `{name}`: {why}" for name, why in sorted(data["left"].items()))]
    return "\n".join(out) + "\n"


def _mean(row: dict[str, Any]) -> float:
    return mean(row["accuracy"].values())


def _row(row: dict[str, Any], each: int) -> list[str]:
    kinds = list(row["accuracy"].values())
    error = sum(p * (1 - p) / each for p in kinds) ** 0.5 / len(kinds)
    return [
        f"{row['final']:.0f}",
        f"{row['mean']:.0f}",
        f"{100 * row['flops']:.0f}%",
        *(f"{100 * p:.0f}" for p in kinds),
        f"{100 * _mean(row):.1f}",
        f"{100 * error:.1f}",
        f"{row['ms']:.2f}",
    ]


def main(file: Path = Path("out/several.json")) -> None:
    PAGE.write_text(page(measure(file)), encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
