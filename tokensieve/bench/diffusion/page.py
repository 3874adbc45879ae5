"""Page: report.html of pipelines with fewer tokens, self-contained; and the table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tokensieve.bench.pages import picture, templates
from tokensieve.core.files import write_text

TILE = 96
COLUMNS: dict[str, str] = {
    "arm": "the method and the share of tokens that it keeps",
    "time": "of one step as a share of the plain one, medians of calls in turns",
    "selection": "what choosing the tokens takes, as a share of the plain step",
    "floor": "the step on that many tokens, selection free",
    "FLOPs": "counted, as a share of the plain step's",
    "PSNR": "to the plain images, dB; the half of a 95% interval behind it",
    "SSIM": "to the plain images",
    "agrees": "share of images that the frozen classifier takes for what it takes the plain ones for",
    "right": "share that it takes for what was asked for",
    "distance": "kernel distance of its features to the plain images', times 1000, and a 95% interval; 0 in the mean where equal",
    "pays from": "the smallest number of tokens tried from which on a step is faster than the plain one",
}


def table(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Heads, and cells of each arm; columns that no arm has are left out."""
    lines = [_line(key, row) for key, row in results["rows"].items()]
    heads = [head for i, head in enumerate(COLUMNS) if any(line[i] for line in lines)]
    keep = [i for i, head in enumerate(COLUMNS) if head in heads]
    return heads, [[line[i] for i in keep] for line in lines]


def _line(key: str, row: dict[str, Any]) -> list[str]:
    half = "" if row.get("psnr_half") is None else f" ± {row['psnr_half']:.1f}"
    distance = ""
    if "distance" in row:
        distance = f"{row['distance']:.2f} [{row['distance_low']:.2f}, {row['distance_high']:.2f}]"
    return [
        key, f"{row['time']:.2f}" + ("" if row["pays"] else ", does not pay"), f"{row['selection']:.1%}", f"{row['floor']:.2f}",
        f"{row['flops']:.2f}", f"{row['psnr']:.1f}{half}", f"{row['ssim']:.3f}",
        "" if row.get("agrees") is None else f"{row['agrees']:.0%}", "" if row.get("right") is None else f"{row['right']:.0%}",
        distance, pays_from(row["sizes"]),
    ]  # fmt: skip


def pays_from(shares: Mapping[Any, float]) -> str:
    """From times as a share of the plain one, by the number of tokens: the number from which on all are below 1."""
    sizes = sorted((int(n), share) for n, share in shares.items())
    if not sizes:
        return ""
    paying = [n for i, (n, _) in enumerate(sizes) if all(share < 1 for _, share in sizes[i:])]
    return str(paying[0]) if paying else f"not up to {sizes[-1][0]}"


def page(results: dict[str, Any], folder: Path) -> Path:
    """Write the page beside the results."""
    heads, cells = table(results)
    plain = Image.open(folder / "pictures" / "plain.png").convert("RGB")
    shown = []
    for key, row in results["rows"].items():
        made = Image.open(folder / "pictures" / f"{key.replace(' ', '-')}.png").convert("RGB")
        maps = [(f"step {m['step']}", picture(_map(m["grid"], m["kept"]))) for m in row["kept"]]
        shown.append((key, picture(_large(made)), picture(_large(_difference(plain, made))), maps))
    template = templates().get_template("diffusion.html")
    html = template.render(
        data=results, heads=heads, rows=zip(results["rows"].values(), cells, strict=True), plain=picture(_large(plain)),
        meanings=[(head, COLUMNS[head]) for head in heads], shown=shown,
    )  # fmt: skip
    file = folder / "report.html"
    write_text(file, html)
    return file


def _difference(a: Image.Image, b: Image.Image) -> Image.Image:
    """Where two pictures differ: the largest difference of a channel, four times as bright."""
    gap = np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int)).max(2) * 4
    return Image.fromarray(gap.clip(0, 255).astype(np.uint8))


def _map(grid: list[int], kept: list[int]) -> Image.Image:
    """Tokens that stayed, dark on light."""
    cells = np.full(grid[0] * grid[1], 225, dtype=np.uint8)
    cells[kept] = 40
    return Image.fromarray(cells.reshape(grid)).resize((TILE, TILE * grid[0] // grid[1]), Image.Resampling.NEAREST)


def _large(image: Image.Image) -> Image.Image:
    """Pictures of few pixels enlarged to be seen, others no larger than a line of the page."""
    scale = TILE / image.height if image.height < TILE else min(1.0, 256 / image.height)
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    return image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BILINEAR)
