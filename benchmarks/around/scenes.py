"""What is seen: the testbed's scenes with clutter behind the things, and captions of them."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.around.model import SIDE
from tokensieve.testbed.scenes import SIZE, SPLITS, Scene

MARKS = (10, 41)
"""Strokes and blots of a picture, from and to below."""


def picture(scene: Scene) -> np.ndarray:
    """``(SIDE, SIDE, 3)``, uint8: the scene with strokes and blots in dull colours wherever no thing is."""
    rng = np.random.default_rng([SPLITS[scene.split], scene.seed, scene.index, 7])
    behind = scene.image.copy()
    draw = ImageDraw.Draw(behind)
    for _ in range(int(rng.integers(*MARKS))):
        grey = int(rng.integers(40, 216))
        colour = tuple(int(c) for c in np.clip(grey + rng.integers(-18, 19, size=3), 0, 255))
        x, y = (int(v) for v in rng.integers(0, SIZE, size=2))
        dx, dy = (int(v) for v in rng.integers(4, 60, size=2))
        if rng.random() < 0.6:
            draw.line((x, y, x + dx * int(rng.choice((-1, 1))), y + dy), fill=colour, width=int(rng.integers(1, 4)))
        else:
            draw.ellipse((x, y, x + dx // 3, y + dy // 3), fill=colour)
    whole = Image.composite(scene.image, behind, scene.ink.point(lambda v: 255 if v else 0))
    return np.asarray(whole.resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def foreground(scene: Scene, patches: int) -> np.ndarray:
    """``(patches, patches)`` bool: the patches that a thing covers in part."""
    ink = scene.ink.resize((patches, patches), Image.Resampling.BOX)
    return np.asarray(ink) > 12


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """The things of a scene in some order: "a red word cat top left, a blue digit 3 bottom right"."""
    things = [scene.things[i] for i in rng.permutation(len(scene.things))[:5]]
    return ", ".join(f"a {t.colour} {t.kind} {t.name} {t.place}" for t in things)
