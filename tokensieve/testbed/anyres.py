"""Pictures of twice the side, given as a thumbnail and four crops, as models with any resolution take them."""

from dataclasses import replace

import numpy as np
from PIL import Image

from .questions import QUESTION_KINDS, questions
from .scenes import CELL, KINDS, SIZE, SPLITS, Scene, Thing, _place
from .several import Several, background, balanced
from .words import COLOURS

LARGE = 2 * SIZE


def large(seed: int, index: int, split: str = "train") -> Scene:
    """A scene of 672 px: one to five things as large in pixels as in a small one, so half as large in the thumbnail.

    Each lies in one of 6 x 6 cells, and so in one crop and in one cell of the 3 x 3 layout that questions speak of.
    """
    rng = np.random.default_rng([SPLITS[split], seed, index, 3])
    canvas = background(rng).resize((LARGE, LARGE), Image.Resampling.BILINEAR)
    ink = Image.new("L", canvas.size)
    count, across = int(rng.integers(1, 6)), LARGE // CELL
    things: list[Thing] = []
    for cell, colour in zip(rng.permutation(across**2)[:count], rng.permutation(list(COLOURS))[:count], strict=True):
        full = sum(thing.kind == "word" for thing in things) == 2
        kind = str(rng.choice(list(KINDS), p=(0.55, 0.45, 0.0) if full else (0.36, 0.3, 0.34)))
        y, x = divmod(int(cell), across)
        things.append(replace(_place(canvas, ink, rng, kind, str(colour), (y, x), split), cell=(y // 2, x // 2)))
    return Scene(tuple(things), canvas, ink, split, seed, index)


def views(image: Image.Image) -> tuple[Image.Image, ...]:
    """The thumbnail and the four crops in reading order, all of 336 px, as the image processor makes them."""
    corners = [(x, y) for y in (0, SIZE) for x in (0, SIZE)]
    crops = (image.crop((x, y, x + SIZE, y + SIZE)) for x, y in corners)
    return (image.resize((SIZE, SIZE), Image.Resampling.BICUBIC), *crops)


def anyres_set(number: int = 100, each: int = 40, seed: int = 0, split: str = "test") -> list[Several]:
    """`each` questions of each kind about `number` large scenes; the same arguments always give the same items."""
    made = (large(seed, index, split) for index in range(number))
    items = (Several((scene.image,), question, "anyres") for scene in made for question in questions(scene))
    return balanced(items, QUESTION_KINDS, each, seed)
