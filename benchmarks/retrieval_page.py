"""The page and the plot of what `benchmarks.retrieval` has measured; `python -m benchmarks.retrieval_page` makes them anew."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import mean
from textwrap import fill
from typing import Any

import matplotlib
import numpy as np

from tokensieve.retrieval.evaluation.evaluate import measures, spread

matplotlib.use("Agg")
import matplotlib.pyplot as plt

DOCS = Path(__file__).parent.parent / "docs"
PAGE, PLOT = DOCS / "measured" / "retrieval-leaderboard.md", DOCS / "pictures" / "retrieval-pareto.png"
BASELINES = ("random", "uniform", "pool")
CHOSEN = "agglomerative"
"""The method of the examples, named before anything was measured: goals are read off it, not off the best of many."""
HEAD = ("vectors", "bytes", "nDCG@10", "change", "95%", "MRR", "recall@100")
GOALS = (
    ("2x fewer vectors within 1% of nDCG@10", f"{CHOSEN}@0.5#0", 1.0),
    ("3x fewer vectors within 3%", f"{CHOSEN}@0.33#0", 3.0),
    ("30% pruned within 1% (no vector merged)", "idf@0.7#0", 1.0),
    ("binary within 2%", "full@1.0+binary", 2.0),
    ("int4 within 0.5%", "full@1.0+int4", 0.5),
)


class Results:
    """Measured cells; several seeds of a draw count as one."""

    def __init__(self, data: dict[str, Any]):
        self.data, self.cells = data, data["cells"]
        self.full = self.quality("full")

    def keys(self, key: str) -> list[str]:
        return [k for k in self.cells if k == key or k.startswith(key + "#")]

    def quality(self, key: str) -> dict[str, np.ndarray]:
        """Per query, averaged over seeds."""
        found = [measures(np.array(self.cells[k]["ranks"])) for k in self.keys(key)]
        return {name: np.mean([f[name] for f in found], 0) for name in found[0]}

    def size(self, key: str) -> tuple[float, float]:
        """Vectors and bytes per passage."""
        found = [self.cells[k] for k in self.keys(key)]
        vectors = mean(c["vectors"] for c in found) / self.data["passages"]
        return vectors, vectors * found[0]["bytes"]

    def change(self, key: str) -> tuple[float, float, float]:
        """Percent of nDCG@10 against all vectors, with the 95% interval."""
        own, all_ = self.quality(key)["nDCG@10"], self.full["nDCG@10"]
        low, high = spread(own, all_)
        return tuple(100 * v / all_.mean() for v in (own.mean() - all_.mean(), low, high))  # type: ignore[return-value]

    def row(self, key: str) -> list[str]:
        vectors, size = self.size(key)
        q = {k: float(v.mean()) for k, v in self.quality(key).items()}
        gap, low, high = self.change(key)
        shown = [f"{vectors:.1f}", f"{size:,.0f}"] if vectors else ["", ""]
        recall = f"{q['recall@100']:.3f}"
        return [
            *shown, f"{q['nDCG@10']:.4f}", f"{gap:+.1f}%", f"{low:+.1f} to {high:+.1f}", f"{q['MRR']:.4f}", recall,
        ]  # fmt: skip

    @property
    def budgets(self) -> list[float]:
        return sorted({float(k.split("@")[1].split("#")[0]) for k in self.cells if "#" in k}, reverse=True)

    def methods(self, keep: float) -> list[str]:
        return sorted({k.split("@")[0] for k in self.cells if f"@{keep}#" in k})


def joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The results of several slices of queries as one: the cells that all of them hold."""
    keys = [key for key in parts[0]["cells"] if all(key in p["cells"] for p in parts)]
    cells = {key: dict(parts[0]["cells"][key]) for key in keys}
    for key, cell in cells.items():
        cell["ranks"] = [r for p in parts for r in p["cells"][key]["ranks"]]
    return {**parts[0], "cells": cells}


def write(data: dict[str, Any]) -> None:
    results = Results(data)
    plot(results)
    PAGE.write_text(page(results), encoding="utf-8")


def page(r: Results) -> str:
    """The page as Markdown."""
    d = r.data
    asked = len(d["cells"]["full"]["ranks"])
    what = (
        f"Real text that every Python installation carries: docstrings of {' and '.join(d['sources'])}. The first line is the "
        f"query, what follows it the passage that answers it; the two never overlap. {d['passages']:,} passages with "
        f"{d['vectors']:,} vectors ({d['vectors'] / d['passages']:.1f} each, at most {d['longest']}), {asked:,} held-out "
        f"queries, one right passage each. Vectors are the last hidden states of MiniLM (frozen, {d['dim']} dimensions, of "
        "length 1), scored by summed MaxSim, exactly. Budgets are shares of each passage's own vectors; bytes are per passage, "
        "as float16 unless a codec is named. `change` is that of nDCG@10 against all vectors, with the 95% interval over queries "
        "(bootstrap, paired). Nothing was tuned on these queries."
    )
    where = f"{d['cpu']}, torch {d['versions']['torch']}, transformers {d['versions']['transformers']}."
    out = [
        "# Retrieval leaderboard",
        "",
        fill(what, 128),
        "",
        where,
        "",
        f"![Quality against bytes](../pictures/{PLOT.name})",
    ]
    out += ["", "## Without reduction", "", *_table("ranking", [(n, r.row(k)) for n, k in _WHOLE])]
    out += ["", "## Goals", "", *_goals(r)]
    for keep in r.budgets:
        rows = []
        for name in r.methods(keep):
            shown = f"**{name}**" if name in BASELINES else name
            rows.append(
                (shown + (" ↓" if _below(r, name, keep) else ""), r.row(f"{name}@{keep}"), r.quality(f"{name}@{keep}"))
            )
        rows.sort(key=lambda x: -x[2]["nDCG@10"].mean())
        out += ["", f"## keep = {keep}", "", *_table("method", [(n, cells) for n, cells, _ in rows])]
    out += ["", fill("↓: not above random. Baselines are bold; random is the mean of three draws. `whole-words` keeps fewer "
                     "vectors than the budget where there are fewer words.", 128)]  # fmt: skip
    stored = [(_coded(k), r.row(k)) for k in r.cells if "+" in k]
    out += ["", "## Codecs", "", *_table("stored", stored)] if stored else []
    merged = ", ".join(f"`{n}`" for n in ("agglomerative", "kmeans", "pool", "whole-words"))
    out += ["", f"Merging methods: {merged}; all others keep vectors as they are."]
    return "\n".join(out) + "\n"


_WHOLE = (("all vectors, MaxSim", "full"), ("single vector (MiniLM, mean)", "single"), ("BM25", "bm25"))


def _below(r: Results, name: str, keep: float) -> bool:
    bar = r.quality(f"random@{keep}")["nDCG@10"].mean()
    return name not in BASELINES and bool(r.quality(f"{name}@{keep}")["nDCG@10"].mean() <= bar)


def _coded(key: str) -> str:
    what, how = key.split("+")
    name, keep = what.split("@")
    return f"all, {how}" if name == "full" else f"{name} {keep}, {how}"


def _table(first: str, rows: list[tuple[str, list[str]]]) -> list[str]:
    head = [first, *HEAD]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * len(HEAD)]
    return lines + ["| " + " | ".join([name, *cells]) + " |" for name, cells in rows]


def _goals(r: Results) -> list[str]:
    lines = ["| goal | measured on | change | 95% | reached |", "|---|---|---:|---:|---|"]
    for goal, key, most in (g for g in GOALS if g[1] in r.cells):
        gap, low, high = r.change(key)
        met = "yes" if gap >= -most else "no"
        lines.append(f"| {goal} | {key.split('#')[0]} | {gap:+.1f}% | {low:+.1f} to {high:+.1f} | {met} |")
    return lines


def plot(r: Results) -> None:
    """nDCG@10 against bytes per passage."""
    figure, axes = plt.subplots(figsize=(9, 5.5), dpi=130)
    names = r.methods(r.budgets[0])
    colours = plt.get_cmap("tab20")(np.linspace(0, 1, 20))
    for i, name in enumerate(names):
        points = [(r.size(f"{name}@{k}")[1], r.quality(f"{name}@{k}")["nDCG@10"].mean()) for k in r.budgets]
        style = {"linestyle": ":", "color": "grey"} if name in BASELINES else {"color": colours[i]}
        mark = {"random": "x", "uniform": "+", "pool": "s"}.get(name, "o")
        axes.plot(*zip(*points, strict=True), marker=mark, markersize=4, linewidth=1.2, label=name, **style)
    groups: dict[str, list[str]] = {}
    for key in r.cells:
        if "+" in key:
            groups.setdefault(key.split("+")[0], []).append(key)
    for shade, (what, keys) in zip(("black", "tab:red", "tab:purple"), groups.items(), strict=False):
        label = "all vectors, codecs" if what.startswith("full") else f"{what.replace('@', ' ')}, codecs"
        points = [(r.size(k)[1], r.quality(k)["nDCG@10"].mean()) for k in keys]
        axes.scatter(*zip(*points, strict=True), marker="D", s=26, color=shade, label=label, zorder=3)
        if what.startswith("full"):
            for key, point in zip(keys, points, strict=True):
                axes.annotate(key.split("+")[1], point, fontsize=7, xytext=(4, 4), textcoords="offset points")
    for name, key, line in (("single vector", "single", "--"), ("BM25", "bm25", "-.")):
        axes.axhline(r.quality(key)["nDCG@10"].mean(), color="grey", linestyle=line, linewidth=1)
        height = r.quality(key)["nDCG@10"].mean()
        axes.text(0.01, height, name, transform=axes.get_yaxis_transform(), fontsize=8, va="bottom")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1024:g} KB" if x >= 1024 else f"{x:g} B")
    axes.set_xlabel("bytes per passage")
    axes.set_ylabel("nDCG@10, held-out queries")
    axes.set_title(f"Fewer vectors, fewer bytes: {r.data['passages']:,} docstrings, MiniLM, MaxSim")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, ncols=2, loc="lower right")
    figure.tight_layout()
    figure.savefig(PLOT, metadata={"Software": None})
    plt.close(figure)


def main(folder: Path = Path("out/retrieval")) -> None:
    files = sorted(folder.glob("queries-*.json"), key=lambda file: int(file.stem.split("-")[1]))
    write(joined([json.loads(file.read_text()) for file in files]))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
