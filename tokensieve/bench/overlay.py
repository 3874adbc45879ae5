"""Overlays: which tokens of an image were kept, where the others went, and what the method ranked by."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw

from tokensieve.bench.data import Sample
from tokensieve.bench.subject import Subject
from tokensieve.core.plan import Plan
from tokensieve.core.reduction import Reduction
from tokensieve.sites.sieve import Sieve

DIM = 0.22


@dataclass(frozen=True)
class Shown:
    """One image under one plan: what came of its tokens, and what the model answered."""

    image: Image.Image
    reduction: Reduction
    grid: tuple[int, int]
    score: np.ndarray | None
    answer: str


@torch.no_grad()
def look(subject: Subject, sample: Sample, plan: Plan, seed: int = 0, new_tokens: int = 8) -> Shown:
    """Run a plan on one image.

    Raises:
        ValueError: the image's tokens do not lie on one grid.
    """
    inputs = subject.inputs([sample])
    with Sieve(subject.model, plan, seed, scores=True) as s:
        answer = subject.texts(inputs, subject.ask(inputs, new_tokens))[0]
    trace = s.last
    if trace is None or not trace.stages:
        raise ValueError("no stage met visual tokens that it could take away; there is nothing to show")
    grid = trace.stages[0].grid
    reduction = trace.stages[-1].reduction
    if grid is None or grid[0] * grid[1] != reduction.n:
        raise ValueError(f"the {reduction.n} visual tokens of this image do not lie on one grid; overlays need one")
    score = trace.stages[0].score
    heat = None if score is None or score.shape[1] != reduction.n else score[0].float().cpu().numpy()
    pixels = inputs["pixel_values"]
    seen = as_seen(pixels) if pixels.dim() >= 4 else sample.image  # packed patches are no picture
    return Shown(seen, reduction.rows(slice(0, 1)).to("cpu"), grid, heat, answer)


def as_seen(pixels: torch.Tensor) -> Image.Image:
    """The image as the encoder got it (resized, cropped), stretched back to 0..255."""
    x = pixels.reshape(-1, *pixels.shape[-3:])[0].float().cpu()
    low, high = x.amin((1, 2), keepdim=True), x.amax((1, 2), keepdim=True)
    x = (x - low) / (high - low).clamp(min=1e-6)
    return Image.fromarray((255 * x.permute(1, 2, 0)).byte().numpy())


def overlay(shown: Shown, side: int = 448) -> Image.Image:
    """Kept tokens bright; merged ones tinted in the colour of their owner, whose cell is framed in it; dropped ones dim."""
    rows, columns = shown.grid
    image = shown.image.resize((side, side), Image.Resampling.BICUBIC)
    pixels = np.asarray(image, dtype=np.float32) / 255
    owner = shown.reduction.owner[0].numpy().reshape(rows, columns)
    kept = np.zeros((rows, columns), dtype=bool)
    kept.flat[shown.reduction.kept[0][shown.reduction.mask[0]].numpy()] = True
    cell_y = np.arange(side) * rows // side
    cell_x = np.arange(side) * columns // side
    bright = kept[cell_y][:, cell_x][..., None]
    slot = owner[cell_y][:, cell_x]
    tint = colours(int(owner.max()) + 1)[np.maximum(slot, 0)]
    merged = ((slot >= 0) & ~bright[..., 0])[..., None]
    grey = pixels.mean(2, keepdims=True)
    out = np.where(bright, pixels, np.where(merged, 0.55 * tint + 0.3 * grey, DIM * pixels))
    drawn = Image.fromarray((255 * out.clip(0, 1)).astype(np.uint8))
    pen = ImageDraw.Draw(drawn)
    shares = np.bincount(owner[owner >= 0], minlength=int(owner.max()) + 1)
    for y, x in zip(*kept.nonzero(), strict=True):
        edge = colours(len(shares))[owner[y, x]] if shares[owner[y, x]] > 1 else np.array([1.0, 1.0, 1.0])
        box = (x * side // columns, y * side // rows, (x + 1) * side // columns - 1, (y + 1) * side // rows - 1)
        pen.rectangle(box, outline=tuple(int(255 * c) for c in edge), width=2 if shares[owner[y, x]] > 1 else 1)
    return drawn


def heat(shown: Shown, side: int = 448) -> Image.Image | None:
    """What the method ranked by, from dark (least) to yellow (most), by rank; None where it ranks nothing."""
    if shown.score is None:
        return None
    import matplotlib

    rank = shown.score.argsort().argsort() / max(1, len(shown.score) - 1)
    coloured = (255 * matplotlib.colormaps["viridis"](rank.reshape(shown.grid))[..., :3]).astype(np.uint8)
    return Image.fromarray(coloured).resize((side, side), Image.Resampling.NEAREST)


def sheet(shown: Shown, title: str, side: int = 448) -> Image.Image:
    """The image, the overlay and the heat map beside each other, with a line of text above."""
    from PIL import ImageFont

    ranked = heat(shown, side)
    panels = [shown.image.resize((side, side), Image.Resampling.BICUBIC), overlay(shown, side)]
    head, gap = 44, 8
    out = Image.new("RGB", (3 * side + 2 * gap, side + head), "white")
    pen, font = ImageDraw.Draw(out), ImageFont.load_default(18)
    pen.text((4, 10), title, fill="black", font=font)
    for i, panel in enumerate(panels):
        out.paste(panel, (i * (side + gap), head))
    if ranked is not None:
        out.paste(ranked, (2 * (side + gap), head))
    else:
        pen.text((2 * (side + gap) + 20, head + side // 2 - 10), "this method ranks nothing", fill="#555555", font=font)
    return out


def colours(count: int) -> np.ndarray:
    """Hues apart from one another, in golden steps."""
    return np.array([colorsys.hsv_to_rgb((0.11 + 0.618034 * i) % 1, 0.85, 1.0) for i in range(max(count, 1))])
