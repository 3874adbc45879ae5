"""Generated scenes: a few coloured digits, shapes and words on a plain background.

A scene is a pure function of `(split, seed, index)`. The two splits draw from different random streams and from
different handwritten digits, so nothing a model was trained on appears in the test split.
"""

import functools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .words import COLOURS, COLUMNS, KINDS, ROWS, SHAPES

SIZE = 336
CELL = SIZE // 3
WORDS = (22, 33)  # sizes of words in pixels, from and to below
FONTS = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf")
SPLITS = {"train": 0, "test": 1}
TRAIN_DIGITS = 1400  # of 1797; the rest belongs to the test split


@dataclass(frozen=True)
class Thing:
    """One object of a scene. `box` is tight, in pixels `(x0, y0, x1, y1)`; `cell` is `(row, column)` of the 3 x 3 layout."""

    kind: str
    name: str
    colour: str
    box: tuple[int, int, int, int]
    cell: tuple[int, int]

    @property
    def place(self) -> str:
        """Where the thing is, in the two words that a location question expects."""
        return f"{ROWS[self.cell[0]]} {COLUMNS[self.cell[1]]}"


@dataclass(frozen=True)
class Scene:
    """Things and the picture of them; `ink` (mode L) is how much of each pixel is covered by a thing."""

    things: tuple[Thing, ...]
    image: Image.Image
    ink: Image.Image
    split: str
    seed: int
    index: int


def generate(seed: int, index: int, split: str = "train", words: tuple[int, int] = WORDS) -> Scene:
    """Draw scene `index` of the stream `seed`: one to five things, at most two of them words.

    Things in a scene all differ in colour; names may repeat.
    """
    rng = np.random.default_rng([SPLITS[split], seed, index])
    count = int(rng.integers(1, 6))
    canvas, ink = _background(rng), Image.new("L", (SIZE, SIZE))
    things: list[Thing] = []
    for cell, colour in zip(rng.permutation(9)[:count], rng.permutation(list(COLOURS))[:count], strict=True):
        full = sum(thing.kind == "word" for thing in things) == 2
        kind = str(rng.choice(list(KINDS), p=(0.55, 0.45, 0.0) if full else (0.36, 0.3, 0.34)))
        things.append(_place(canvas, ink, rng, kind, str(colour), divmod(int(cell), 3), split, words))
    return Scene(tuple(things), canvas, ink, split, seed, index)


def crowd(seed: int, index: int, split: str = "train", words: tuple[int, int] = WORDS) -> Scene:
    """A scene with something in nearly every cell, and words three to a cell; colours repeat.

    It is not for questions. There is simply more to learn from in each picture for the vision tower.
    """
    rng = np.random.default_rng([SPLITS[split], seed, index, 1])
    canvas, ink = _background(rng), Image.new("L", (SIZE, SIZE))
    things = []
    for cell in rng.permutation(9)[: int(rng.integers(6, 10))]:
        kind = str(rng.choice(list(KINDS), p=(0.4, 0.3, 0.3)))
        for third in range(3) if kind == "word" else (None,):
            colour = str(rng.choice(list(COLOURS)))
            things.append(_place(canvas, ink, rng, kind, colour, divmod(int(cell), 3), split, words, third))
    return Scene(tuple(things), canvas, ink, split, seed, index)


def _place(canvas, ink, rng, kind, colour, cell, split, words=WORDS, third=None) -> Thing:
    name = str(rng.choice(KINDS[kind]))
    if kind == "digit":
        mask = _digit(int(rng.choice(digit_pool(split)[int(name)])), int(rng.integers(52, 97)))
    elif kind == "shape":
        mask = _shape(name, int(rng.integers(44, 85)), float(rng.uniform(-8, 8)))
    else:
        mask = _word(name, str(rng.choice(FONTS)), int(rng.integers(*words)))
    mask = mask.crop(mask.getbbox())
    height, down = (CELL, 0) if third is None else (CELL // 3, third * (CELL // 3))
    room = CELL - mask.width, height - mask.height
    margins = [min(6, r // 2) for r in room]
    offset = [int(rng.integers(m, r - m + 1)) for m, r in zip(margins, room, strict=True)]
    x, y = cell[1] * CELL + offset[0], cell[0] * CELL + down + offset[1]
    paint = np.clip(np.array(COLOURS[colour]) + rng.integers(-14, 15, size=3), 0, 255)
    canvas.paste(tuple(int(c) for c in paint), (x, y, x + mask.width, y + mask.height), mask)
    ink.paste(mask, (x, y))
    return Thing(kind, name, colour, (x, y, x + mask.width, y + mask.height), cell)


def _background(rng) -> Image.Image:
    """Dim or light, flat or a gradient, with low noise; hardly ever saturated enough to pass for a colour of the palette.

    Values outside a byte wrap around: in some dim gradients the darkest corner is a bright patch, and noise on the lightest
    ones leaves dark specks. The packaged weights were trained on these pictures, so that they stay as they are.
    """
    level = rng.uniform(15, 60) if rng.random() < 0.5 else rng.uniform(185, 230)
    picture = np.full((SIZE // 8, SIZE // 8, 3), level + rng.uniform(-8, 8, size=3))
    if rng.random() < 0.6:
        angle, depth = rng.uniform(0, 2 * math.pi), rng.uniform(5, 25)
        line = np.linspace(-0.5, 0.5, SIZE // 8)
        picture += depth * (math.cos(angle) * line[None, :] + math.sin(angle) * line[:, None])[..., None]
    smooth = Image.fromarray(picture.astype(np.uint8)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    grain = int(rng.integers(0, 5))
    noise = rng.integers(0, grain + 1, size=(SIZE, SIZE, 1), dtype=np.uint8)
    return Image.fromarray(np.asarray(smooth) + noise)


@functools.cache
def _digits():
    from sklearn.datasets import load_digits

    data = load_digits()
    return (data.images * (255 / 16)).astype(np.uint8), data.target


@functools.cache
def digit_pool(split: str) -> tuple[np.ndarray, ...]:
    """For each digit 0 to 9, the numbers of the scikit-learn images that belong to `split`."""
    target = _digits()[1]
    order = np.random.default_rng(0).permutation(len(target))
    mine = order[:TRAIN_DIGITS] if split == "train" else order[TRAIN_DIGITS:]
    return tuple(np.sort(mine[target[mine] == digit]) for digit in range(10))


def _digit(number: int, size: int) -> Image.Image:
    padded = np.pad(_digits()[0][number], 1)  # the strokes reach the border
    mask = Image.fromarray(padded).resize((size, size), Image.Resampling.BICUBIC)
    return mask.point(lambda v: max(0, min(255, (v - 60) * 2)))  # the soft 8 x 8 strokes get an edge


def _shape(name: str, size: int, tilt: float) -> Image.Image:
    big = 3 * size  # drawn large and reduced, for smooth edges
    mask = Image.new("L", (big, big))
    _draw_shape(ImageDraw.Draw(mask), name, big)
    return mask.rotate(tilt, Image.Resampling.BICUBIC).resize((size, size), Image.Resampling.LANCZOS)


def _draw_shape(draw, name: str, n: int) -> None:
    low, high = 0.06 * n, 0.94 * n
    if name in ("circle", "ring"):
        draw.ellipse((low, low, high, high), fill=255)
        if name == "ring":
            draw.ellipse((0.28 * n, 0.28 * n, 0.72 * n, 0.72 * n), fill=0)
    elif name == "heart":
        draw.ellipse((low, 0.1 * n, 0.53 * n, 0.57 * n), fill=255)
        draw.ellipse((0.47 * n, 0.1 * n, high, 0.57 * n), fill=255)
        draw.polygon([(0.11 * n, 0.48 * n), (0.5 * n, 0.3 * n), (0.89 * n, 0.48 * n), (0.5 * n, high)], fill=255)
    else:
        draw.polygon([(x * n, y * n) for x, y in _corners(name)], fill=255)


def _corners(name: str):
    if name == "square":
        return (0.12, 0.12), (0.88, 0.12), (0.88, 0.88), (0.12, 0.88)
    if name == "triangle":
        return (0.5, 0.08), (0.94, 0.88), (0.06, 0.88)
    if name == "diamond":
        return (0.5, 0.05), (0.88, 0.5), (0.5, 0.95), (0.12, 0.5)
    if name == "cross":
        a, b, c, d = 0.08, 0.36, 0.64, 0.92
        return (b, a), (c, a), (c, b), (d, b), (d, c), (c, c), (c, d), (b, d), (b, c), (a, c), (a, b), (b, b)
    if name == "star":
        radii = [0.47 if k % 2 == 0 else 0.19 for k in range(10)]
        turns = [math.pi * k / 5 - math.pi / 2 for k in range(10)]
        return [(0.5 + r * math.cos(t), 0.52 + r * math.sin(t)) for r, t in zip(radii, turns, strict=True)]
    raise ValueError(f"unknown shape {name!r}; there are {', '.join(SHAPES)}")


@functools.lru_cache(maxsize=256)
def _font(file: str, size: int):
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / file), size)


def _word(text: str, file: str, size: int) -> Image.Image:
    font = _font(file, size)
    x0, y0, x1, y1 = font.getbbox(text)
    mask = Image.new("L", (int(x1 - x0) + 4, int(y1 - y0) + 4))
    ImageDraw.Draw(mask).text((2 - x0, 2 - y0), text, fill=255, font=font)
    return mask
