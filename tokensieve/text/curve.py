"""The recovery of a model under a new vocabulary, drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokensieve.core.files import write
from tokensieve.text.adapt import Point


def draw(curve: Sequence[Point], before: float, file: Path) -> None:
    """Bits per byte by tokens trained on, beside what it was before; a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot([p.trained for p in curve], [p.bits for p in curve], "o-", color="#2f7f86", label="new vocabulary")
    axes.axhline(before, color="#c9772b", linestyle="--", label="old vocabulary")
    axes.set(xlabel="tokens trained on", ylabel="bits per byte, held out")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    write(file, lambda part: figure.savefig(part, format="png", dpi=150))
