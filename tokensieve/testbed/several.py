"""Items of several pictures: what is common to clips, pairs of pictures and pictures in crops."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .questions import SceneQuestion
from .scenes import _background

PICTURES = {"clip": 8, "pair": 2, "anyres": 5}
"""How many pictures the vision tower sees for a prompt of each form."""
FORMS = tuple(PICTURES)
PATCHES = 576


@dataclass(frozen=True)
class Several:
    """One question about the frames of a clip, a pair of pictures, or one large picture; `form` is one of `FORMS`."""

    images: tuple[Image.Image, ...]
    question: SceneQuestion
    form: str

    @property
    def prompt(self) -> str:
        """As written: one ``<video>`` for a clip, one ``<image>`` for each picture."""
        seen = "<video> " if self.form == "clip" else "<image> " * len(self.images)
        return f"{seen}{self.question.text} answer :"

    @property
    def answer(self) -> str:
        return self.question.answer

    @property
    def kind(self) -> str:
        return self.question.kind


def background(rng: np.random.Generator) -> Image.Image:
    """A background of the scenes, drawn again where its dark end fell below zero and came out as a bright patch."""
    while True:
        picture = _background(rng)
        if np.ptp(np.asarray(picture)) < 100:
            return picture


def balanced(items: Iterable[Several], kinds: tuple[str, ...], each: int, seed: int) -> list[Several]:
    """``each`` items of every kind, the kinds one after the other; the same arguments give the same items.

    Raises:
        ValueError: a kind with too few items.
    """
    found: dict[str, list[Several]] = {kind: [] for kind in kinds}
    for item in items:
        found[item.kind].append(item)
    rng = np.random.default_rng(seed)
    chosen = []
    for kind, those in found.items():
        if len(those) < each:
            raise ValueError(f"there are {len(those)} {kind} questions, not each={each}: raise `number`")
        chosen += [those[i] for i in np.sort(rng.permutation(len(those))[:each])]
    return chosen
