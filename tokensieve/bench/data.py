"""What a bench asks: held-out questions of the testbed, or a folder of images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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


def from_testbed(questions: int, seed: int, which: str = "scenes") -> list[Sample]:
    """About so many questions of one of :data:`SETS`, balanced over their kinds; from the test split."""
    per_kind = max(1, questions // len(SETS[which]))
    if which != "scenes":
        draw = {"clips": testbed.clip_set, "pairs": testbed.pair_set, "anyres": testbed.anyres_set}[which]
        several = draw(number=max(20, 3 * per_kind), each=per_kind, seed=seed)
        return [
            Sample(i.images[0], i.question.text, i.answer, i.kind, f"{i.form} {n}", i) for n, i in enumerate(several)
        ]
    items = testbed.test_set(n_scenes=max(20, 3 * per_kind), questions_per_kind=per_kind, seed=seed)
    return [Sample(i.image, i.question.text, i.answer, i.kind, f"scene {n}") for n, i in enumerate(items)]


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
