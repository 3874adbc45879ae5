"""Pictures: signals side by side, the plot of rate against distortion, histograms of usage."""

from __future__ import annotations

from io import StringIO
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from tokensieve.bench.plots import COLOURS, MARKERS

SIDE, GAP = 96, 4


def strip(shown: Tensor, kind: str) -> Image.Image:
    """Signals ``(n, C, H, W)`` in a line: images as they are, waveforms drawn."""
    out = Image.new("RGB", (len(shown) * (SIDE + GAP) - GAP, SIDE), "white")
    for i, signal in enumerate(shown):
        if kind == "images":
            pixels = (signal.permute(1, 2, 0) * 255).round().clamp(0, 255).byte().numpy()
            tile = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.NEAREST)
        else:
            tile = _wave(signal.flatten().numpy())
        out.paste(tile, (i * (SIDE + GAP), 0))
    return out


def _wave(values: np.ndarray) -> Image.Image:
    tile = Image.new("RGB", (SIDE, SIDE), "#f4f4f4")
    draw = ImageDraw.Draw(tile)
    top = max(float(np.abs(values).max()), 1e-6)
    for x, part in enumerate(np.array_split(values / top, SIDE)):
        draw.line([(x, SIDE / 2 * (1 - part.max())), (x, SIDE / 2 * (1 - part.min()))], fill="#0072B2")
    return tile


def plot(results: dict[str, Any]) -> str:
    """Rate against distortion as SVG: a line a name, over the bytes of a signal."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import NullLocator

    lines: dict[str, list[dict[str, Any]]] = {}
    for row in results["rows"].values():
        lines.setdefault(row["name"], []).append(row)
    fig, ax = plt.subplots(figsize=(9, 5.2), layout="constrained")
    coloured = [n for n, rows in lines.items() if rows[0]["role"] == "tokenizer"]
    others = [n for n, rows in lines.items() if rows[0]["role"] == "baseline"]
    styles = ("x--", "+--", "1--", "2--", "3:", "4:")
    for name, rows in lines.items():
        if rows[0]["role"] == "ceiling":
            for row in rows:
                ax.axhline(row["psnr"], color="#bbbbbb", linewidth=1)
                ax.annotate(f"continuous, {row['tokens'] or row['asked_tokens']} tokens", (0.995, row["psnr"]),
                            xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=7, color="#777777")  # fmt: skip
            continue
        points = sorted((row["bits"] / 8, row["psnr"]) for row in rows if row["bits"])
        if not points:
            continue
        x, y = zip(*points, strict=True)
        if name in others:
            ax.plot(x, y, styles[others.index(name) % 6], color="#666666", linewidth=1, label=name)
        else:
            i = coloured.index(name)
            ax.plot(x, y, MARKERS[i % 6] + "-", color=COLOURS[i % 7], label=name)
    ax.set_xscale("log", base=2)
    ticks = apart([row["bits"] / 8 for rows in lines.values() for row in rows if row["bits"]])
    ax.set_xticks(ticks, [f"{v:.0f}" for v in ticks])
    ax.xaxis.set_minor_locator(NullLocator())
    if ticks:
        ax.set_xlim(ticks[0] / 1.1, ticks[-1] * 1.1)
    ax.set_xlabel("bytes of a signal, codes stored plainly")
    ax.set_ylabel("PSNR on held-out signals, dB")
    ax.grid(color="#eeeeee")
    ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    text = StringIO()
    fig.savefig(text, format="svg")
    plt.close(fig)
    return text.getvalue()


def apart(sizes: list[float]) -> list[float]:
    """Sizes to write below a logarithmic axis, from below: the largest, and those that are a twelfth below the next."""
    out: list[float] = []
    for size in sorted(sizes, reverse=True):
        if not out or size < out[-1] / 1.09:
            out.append(size)
    return out[::-1]


def histogram(counts: list[int]) -> str:
    """How often codes occur, from the most frequent to the least, as a small SVG on a logarithmic scale."""
    if not counts:
        return ""
    top = np.log1p(counts[0])
    heights = [40 * np.log1p(c) / top for c in counts]
    step = 200 / len(heights)
    bars = "".join(
        f'<rect x="{i * step:.1f}" y="{40 - h:.1f}" width="{step:.2f}" height="{h:.1f}"/>'
        for i, h in enumerate(heights)
    )
    return f'<svg width="200" height="40" viewBox="0 0 200 40" class="usage">{bars}</svg>'
