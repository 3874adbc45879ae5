"""What is still known of a context against the bytes that its cache holds, drawn."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import matplotlib.pyplot as plt

from tokensieve.core.files import write

Row = Mapping[str, float]


class Panel(NamedTuple):
    """How a task is drawn: what stands beside it, and what its numbers are multiplied with."""

    label: str
    scale: float


PANELS = {
    "bits per byte": Panel("bits per byte of held-out Python (less is better)", 1),
    "facts": Panel("facts recalled (%)", 100),
}
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
STYLES = (("-", "o"), (":", "^"), ("-.", "s"))
APART = 0.048
"""Of the height of a panel, between names."""


def plot(
    full: Row,
    rows: Mapping[str, Mapping[float, Row]],
    file: Path,
    panels: Mapping[str, Panel] = PANELS,
    across: int = len(PANELS),
) -> None:
    """Draw rows by method and budget, and the full cache's as a line across; names stand beside points where each method has one.

    Args:
        panels: by task; across: how many stand beside each other.
    """
    matplotlib.use("Agg")
    rows = {name: budgets for name, budgets in rows.items() if budgets}
    single = all(len(budgets) == 1 for budgets in rows.values())
    down = len(panels) // across
    figure, grid = plt.subplots(down, across, figsize=(12, 1.4 + 4 * down), layout="constrained", squeeze=False)
    for axis, (task, (label, scale)) in zip(grid.flat, panels.items(), strict=True):
        axis.axhline(scale * full[task], color="0.2", lw=1)
        axis.text(0.01, scale * full[task], "full cache", transform=axis.get_yaxis_transform(), fontsize=8, va="bottom")
        for i, (name, budgets) in enumerate(rows.items()):
            points = sorted((100 * r["bytes"] / full["bytes"], scale * r[task]) for r in budgets.values())
            style, marker = STYLES[i // len(COLOURS) % len(STYLES)]
            look = {"color": "0.55", "ls": "--", "marker": "x"} if name == "random" else {}
            look = look or {"color": COLOURS[i % len(COLOURS)], "ls": style, "marker": marker}
            axis.plot(*zip(*points, strict=True), label=name, lw=1.2, ms=4, **look)
        axis.set_xscale("log")
        axis.set_xticks([5, 10, 25, 50, 100], ["5", "10", "25", "50", "100"])
        axis.minorticks_off()
        axis.set(xlabel="bytes held, % of the full cache", ylabel=label)
        axis.grid(color="0.92")
        axis.spines[["top", "right"]].set_visible(False)
        if single:
            _named(axis)
    if not single:
        figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside right center", fontsize=8, frameon=False)
    write(file, lambda part: figure.savefig(part, dpi=110, format="png"))
    plt.close(figure)


def _named(axis: Any) -> None:
    """Names beside the points of a panel, in their order and apart, each tied to its own."""
    points = [line for line in axis.lines if not line.get_label().startswith("_")]
    low, high = axis.get_ylim()
    fraction = {line: (line.get_ydata()[0] - low) / (high - low) for line in points}
    order = sorted(points, key=fraction.__getitem__)
    at: list[float] = []
    for i, line in enumerate(order):
        least = at[-1] + APART if at else 0.02
        at.append(min(max(fraction[line], least), 0.98 - APART * (len(order) - 1 - i)))
    axis.set_xlim(5, 100)
    for line, place in zip(order, at, strict=True):
        point = (line.get_xdata()[0], line.get_ydata()[0])
        look = {"arrowstyle": "-", "color": line.get_color(), "lw": 0.5, "shrinkA": 0, "shrinkB": 2, "relpos": (0, 0.5)}
        axis.annotate(
            line.get_label(), point, (0.66, place), textcoords="axes fraction", fontsize=7, va="center", arrowprops=look
        )
