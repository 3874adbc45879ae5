"""What is seen: the testbed's scenes with words of several sizes and clutter behind the things, and captions of them."""

# ruff: noqa: PT028  (`test_set` is not a test)

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from tokensieve.testbed import data, scenes
from tokensieve.testbed.around.model import SIDE
from tokensieve.testbed.data import Item
from tokensieve.testbed.scenes import SIZE, SPLITS, Scene

MARKS = (10, 41)
"""Strokes and blots of a picture, from and to below."""
WORDS = (16, 33)
"""Sizes of words, in pixels, from and to below."""


def generate(seed: int, index: int, split: str = "train") -> Scene:
    """A scene to ask about."""
    return scenes.generate(seed, index, split, WORDS)


def crowd(seed: int, index: int, split: str = "train") -> Scene:
    """A scene with more to learn from."""
    return scenes.crowd(seed, index, split, WORDS)


def picture(scene: Scene) -> Image.Image:
    """The scene with strokes and blots in dull colours wherever no thing is."""
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
    return Image.composite(scene.image, behind, scene.ink.point(lambda v: 255 if v else 0))


def foreground(scene: Scene) -> np.ndarray:
    """``(SIDE * SIDE,)`` bool: the patches that a thing covers in part."""
    ink = scene.ink.resize((SIDE, SIDE), Image.Resampling.BOX)
    return (np.asarray(ink) > 12).ravel()


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """The things of a scene in some order: "a red word cat top left, a blue digit 3 bottom right"."""
    things = [scene.things[i] for i in rng.permutation(len(scene.things))[:5]]
    return ", ".join(f"a {t.colour} {t.kind} {t.name} {t.place}" for t in things)


def test_set(n_scenes: int = 100, questions_per_kind: int = 40, seed: int = 0, split: str = "test") -> list[Item]:
    """Held-out questions, balanced by kind; as :func:`tokensieve.testbed.test_set`, on these pictures."""

    def draw(seed: int, index: int, split: str) -> tuple[Scene, Image.Image]:
        scene = generate(seed, index, split)
        return scene, picture(scene)

    return data.test_set(n_scenes, questions_per_kind, seed, split, draw)


setattr(test_set, "__test__", False)  # noqa: B010 (not a test, whatever pytest thinks of the name)
