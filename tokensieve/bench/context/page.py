"""Page: report.html of a bench of prompts, self-contained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokensieve.bench.context.cells import FULL, NONE
from tokensieve.bench.context.rows import verdicts
from tokensieve.bench.context.table import COLUMNS, table
from tokensieve.bench.pages import svg, templates
from tokensieve.bench.plots import COLOURS, MARKERS
from tokensieve.core.files import write_text
from tokensieve.prompt.compressed import Compressed
from tokensieve.prompt.shown import stretches


def page(data: dict[str, Any], folder: Path) -> Path:
    """Write the page beside the results (whole or not at all)."""
    heads, cells = table(data["rows"])
    lines = [(row, cell) for row, cell in zip(data["rows"].values(), cells, strict=True)]
    shown = [
        one | {"lines": {key: (made, list(stretches(_read(made)))) for key, made in one["lines"].items()}}
        for one in data["shown"]
    ]
    template = templates().get_template("prompts.html")
    file = folder / "report.html"
    html = template.render(
        data=data, heads=heads, lines=lines, verdicts=verdicts(data["rows"]), plot=plot(data["rows"]), shown=shown,
        meanings=[(head, what) for head, (_, what) in COLUMNS.items()],
    )  # fmt: skip
    write_text(file, html)
    return file


def _read(made: dict[str, Any]) -> Compressed:
    spans = tuple((a, b) for a, b in made["spans"])
    return Compressed(made["source"], tuple(made["starts"]), spans, made["before"], made["after"], made["counted"])


def plot(rows: dict[str, dict[str, Any]]) -> str:
    """Answers over tokens of the text as SVG, a line a method; the whole text and none of it as levels."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    lines: dict[str, list[dict[str, Any]]] = {}
    for row in rows.values():
        lines.setdefault(row["method"], []).append(row)
    fig, ax = plt.subplots(figsize=(8.5, 4.4), layout="constrained")
    for name in (FULL, NONE):
        level = 100 * lines.pop(name)[0]["contained"]
        ax.axhline(level, color="#999999", linewidth=1, linestyle="--" if name == FULL else ":")
        ax.annotate({FULL: "whole text", NONE: "none of it"}[name], (1.0, level), xycoords=("axes fraction", "data"), ha="right",
                    va="bottom", fontsize=8, color="#666666")  # fmt: skip
    for i, (name, own) in enumerate(lines.items()):
        points = sorted((100 * r["share"], 100 * r["contained"]) for r in own)
        style = ":" if "random" in name or name in ("first", "last") else "-"
        ax.plot(
            *zip(*points, strict=True),
            style,
            marker=MARKERS[i % len(MARKERS)],
            color=COLOURS[i % len(COLOURS)],
            label=name,
        )
    ax.set_xlabel("tokens of the text that stay (%)")
    ax.set_ylabel("questions answered (%)")
    ax.set_xlim(left=0)
    ax.set_ylim(-3, 103)
    ax.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1))
    made = svg(fig)
    plt.close(fig)
    return made
