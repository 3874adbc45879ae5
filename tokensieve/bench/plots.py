"""The Pareto plot: quality against what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokensieve.bench.results import quality
from tokensieve.bench.run import BASELINES

# Okabe and Ito's colours, told apart by all common kinds of colour vision; markers tell them apart once more.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP"
HELD = (
    ("perplexity", "perplexity of what comes next"),
    ("before", "facts told (%), asked before"),
    ("after", "asked after"),
)
"""What texts are judged by, and how it is named."""


def pareto(data: dict[str, Any], folder: Path) -> list[Path]:
    """Write ``pareto.png`` and ``pareto.svg``: quality against mean visual tokens, and against FLOPs.

    The line joins the cells that no other cell beats on both axes; baselines are grey.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = data["rows"]
    names = sorted({r["method"] for r in rows.values()} - {"full", *BASELINES})
    fig, axes = plt.subplots(1, 2, figsize=(12, 5.4), sharey=True, layout="constrained")
    labelled = rows["full"]["accuracy_mean"] is not None
    costs = (
        ("mean_tokens", "visual tokens, mean over language-model layers"),
        ("flops_share", "FLOPs of encoder and prefill, share of full"),
    )
    for ax, (key, label) in zip(axes, costs, strict=True):
        for i, name in enumerate(BASELINES):
            _line(ax, rows, name, key, "#999999", "xs+"[i], "--")
        for i, name in enumerate(names):
            _line(ax, rows, name, key, COLOURS[i % 7], MARKERS[i % 6], "-" if i < 7 else ":")
        front = _front([(r[key], 100 * quality(r)) for r in rows.values() if r["method"] != "full"])
        ax.plot(
            *zip(*front, strict=True),
            color="#00000022",
            linewidth=7,
            zorder=0,
            solid_capstyle="round",
            label="frontier",
        )
        ax.axhline(100 * quality(rows["full"]), color="#444444", linewidth=1)
        at = (0.01, 100 * quality(rows["full"]))
        ax.annotate("every token", at, xycoords=("axes fraction", "data"), ha="left", va="bottom")
        ax.set_xscale("log")
        if key == "mean_tokens":
            ticks = sorted(
                {r["keep"] for r in rows.values() if isinstance(r["keep"], int)} | {round(rows["full"][key])}
            )
            ax.set_xlim(right=1.15 * rows["full"][key])
            ax.set_xticks(ticks, [str(t) for t in ticks])
            ax.minorticks_off()
        else:
            low = min(r[key] for r in rows.values())
            shares = [t for t in (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0) if low * 0.95 <= t]
            ax.set_xticks(shares, [f"{100 * t:.0f}%" for t in shares])
            ax.minorticks_off()
        ax.set_xlabel(label)
        ax.grid(color="#eeeeee")
        ax.spines[["top", "right"]].set_visible(False)
    over = "score, mean over questions (%)" if "asked" in data else "accuracy, mean over kinds of question (%)"
    axes[0].set_ylabel(over if labelled else "same answer as the full model (%)")
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside right center", frameon=False)
    fig.suptitle(f"{data['settings']['model']}: what is left at which cost ({len(data['samples'])} questions)")
    return _saved(fig, folder)


def held(data: dict[str, Any], folder: Path) -> list[Path]:
    """Write ``pareto.png`` and ``pareto.svg`` of a bench of texts: perplexity, and facts told, against bytes held."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = data["rows"]
    names = sorted({r["method"] for r in rows.values()} - {"full", "random"})
    shown = [(k, label) for k, label in HELD if any(r[k] is not None for r in rows.values())]
    fig, axes = plt.subplots(1, len(shown), figsize=(5 * len(shown) + 2, 5), layout="constrained", squeeze=False)
    for ax, (key, label) in zip(axes[0], shown, strict=True):
        scale = 1 if key == "perplexity" else 100
        for i, name in enumerate(["random", *names]):
            points = sorted((100 * r["held"], scale * r[key]) for r in rows.values() if r["method"] == name)
            colour, style = ("#999999", "--") if name == "random" else (COLOURS[(i - 1) % 7], "-" if i <= 7 else ":")
            ax.plot(*zip(*points, strict=True), style, color=colour, marker=MARKERS[i % 6], linewidth=1.3, label=name)
        ax.axhline(scale * rows["full"][key], color="#444444", linewidth=1)
        ax.set_xlabel("bytes held, % of the full cache's")
        ax.set_ylabel(label)
        ax.grid(color="#eeeeee")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_yscale("log")
    axes[0][0].yaxis.set_major_formatter("{x:.3g}")
    axes[0][0].yaxis.set_minor_formatter("{x:.3g}")
    handles, labels = axes[0][0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside right center", frameon=False)
    fig.suptitle(f"{data['settings']['model']}: what is left of {len(data['samples'])} texts (line: every entry)")
    return _saved(fig, folder)


def _saved(fig: Any, folder: Path) -> list[Path]:
    from matplotlib import pyplot as plt

    made = [folder / "pareto.png", folder / "pareto.svg"]
    for file in made:
        fig.savefig(file, dpi=150)
    plt.close(fig)
    return made


def _line(ax: Any, rows: dict[str, Any], name: str, key: str, colour: str, marker: str, style: str) -> None:
    points = sorted((r[key], 100 * quality(r)) for r in rows.values() if r["method"] == name)
    if points:
        x, y = zip(*points, strict=True)
        ax.plot(x, y, style, color=colour, marker=marker, markersize=6, linewidth=1.3, label=name)


def _front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that none with a lower cost equals in quality, by cost."""
    out: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda p: (p[0], -p[1])):
        if not out or y > out[-1][1]:
            out.append((x, y))
    return out
