"""Held-out questions, balanced by kind, for whoever wants to measure something on the packaged model."""

# ruff: noqa: PT028  (`test_set` is not a test)

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from .questions import QUESTION_KINDS, SceneQuestion, questions
from .scenes import Scene, generate


@dataclass(frozen=True)
class Item:
    """One question about one image. `boxes` are those of the things asked about, in pixels."""

    image: Image.Image
    question: SceneQuestion

    @property
    def answer(self) -> str:
        return self.question.answer

    @property
    def kind(self) -> str:
        return self.question.kind

    @property
    def boxes(self) -> tuple[tuple[int, int, int, int], ...]:
        return self.question.boxes


def _plain(seed: int, index: int, split: str) -> tuple[Scene, Image.Image]:
    scene = generate(seed, index, split)
    return scene, scene.image


def test_set(
    n_scenes: int = 100,
    questions_per_kind: int = 40,
    seed: int = 0,
    split: str = "test",
    draw: Callable[[int, int, str], tuple[Scene, Image.Image]] = _plain,
) -> list[Item]:
    """`questions_per_kind` questions of each kind about `n_scenes` scenes, the kinds one after the other.

    The same arguments always give the same items. `draw` makes a scene and its picture from seed, number and split.
    """
    found: dict[str, list[Item]] = {kind: [] for kind in QUESTION_KINDS}
    for index in range(n_scenes):
        scene, picture = draw(seed, index, split)
        for question in questions(scene):
            found[question.kind].append(Item(picture, question))
    rng = np.random.default_rng(seed)
    chosen = []
    for kind, items in found.items():
        if len(items) < questions_per_kind:
            raise ValueError(
                f"{n_scenes} scenes hold {len(items)} {kind} questions, not {questions_per_kind}: raise n_scenes"
            )
        order = rng.permutation(len(items))[:questions_per_kind]
        chosen += [items[i] for i in np.sort(order)]
    return chosen


setattr(test_set, "__test__", False)  # noqa: B010 (not a test, whatever pytest thinks of the name)


def write_examples(target: Path, indices: tuple[int, ...] = (0, 1, 2, 3, 4), seed: int = 0) -> None:
    """Write test scenes as PNG files, and all that can be asked about them as `questions.json`."""
    target.mkdir(parents=True, exist_ok=True)
    asked = {}
    for index in indices:
        scene = generate(seed, index, "test")
        name = f"scene-{index}.png"
        scene.image.save(target / name, optimize=True)
        asked[name] = [asdict(question) for question in questions(scene)]
    (target / "questions.json").write_text(json.dumps(asked, indent=1) + "\n")
