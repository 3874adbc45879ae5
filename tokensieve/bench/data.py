"""What a bench asks: held-out questions of the testbed, or a folder of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from PIL import Image

from tokensieve import testbed
from tokensieve.testbed import Several

SETS = {
    "scenes": testbed.QUESTION_KINDS,
    "clips": testbed.CLIP_KINDS,
    "pairs": testbed.PAIR_KINDS,
    "anyres": testbed.QUESTION_KINDS,
}
"""The testbed's sets of questions, and their kinds."""
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


@dataclass(frozen=True)
class Sample:
    """One question about one image; without a known answer, agreement with the full model is measured.

    ``several`` is the testbed's item where there are several images; ``image`` is then the first.
    """

    image: Image.Image
    question: str
    answer: str | None = None
    kind: str = "all"
    name: str = ""
    several: Several | None = None

    def to_json(self) -> dict[str, Any]:
        """What tells it from others; of the images a fingerprint."""
        images = (self.image,) if self.several is None else self.several.images
        mark = sha256()
        for image in images:
            mark.update(repr(image.size).encode() + image.tobytes())
        return {
            "name": self.name,
            "question": self.question,
            "answer": self.answer,
            "kind": self.kind,
            "image": mark.hexdigest()[:16],
        }


@dataclass(frozen=True)
class Found:
    """What people's own data holds.

    Attributes:
        items: what can be asked: questions, or texts.
        skipped: a sentence for each line or file that cannot.
        notes: what else should be known of it.
    """

    items: list[Any]
    skipped: list[str]
    notes: list[str]


def from_testbed(count: int, seed: int, which: str = "scenes") -> list[Sample]:
    """``count`` questions of one of :data:`SETS` from the test split, as many of each kind as of any other, give or take one."""
    kinds = len(SETS[which])
    most = -(-count // kinds)
    spare = kinds * most - count  # the last kinds give one less
    some = max(20, 3 * most)
    if which == "scenes":
        items: Sequence[Any] = testbed.test_set(n_scenes=some, questions_per_kind=most, seed=seed)
    else:
        draw = {"clips": testbed.clip_set, "pairs": testbed.pair_set, "anyres": testbed.anyres_set}[which]
        items = draw(number=some, each=most, seed=seed)
    chosen = [i for n, i in enumerate(items) if n // most < kinds - spare or n % most < most - 1]
    if which == "scenes":
        return [Sample(i.image, i.question.text, i.answer, i.kind, f"scene {n}") for n, i in enumerate(chosen)]
    return [Sample(i.images[0], i.question.text, i.answer, i.kind, f"{i.form} {n}", i) for n, i in enumerate(chosen)]


def from_folder(folder: Path, question: str, limit: int | None = None) -> tuple[list[Sample], list[str]]:
    """The images of a folder, in the order of their names, and a line for each that could not be read.

    Raises:
        FileNotFoundError: no such folder. ValueError: not one image in it can be read.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"--images {folder}: no such folder")
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
    samples: list[Sample] = []
    skipped: list[str] = []
    for file in files:
        if limit is not None and len(samples) == limit:
            break
        try:
            samples.append(Sample(read_image(file), question, name=file.name))
        except ValueError as error:
            skipped.append(str(error))
    if not samples:
        found = f"none of its {len(files)} images can be read" if files else "it holds no images"
        raise ValueError(f"--images {folder}: {found} (looked for {', '.join(sorted(SUFFIXES))})")
    return samples, skipped


def read_image(file: Path) -> Image.Image:
    """An RGB image, read to its last byte.

    Raises:
        ValueError: unreadable or truncated.
    """
    try:
        with Image.open(file) as opened:
            return opened.convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file.name}: {error}") from error
