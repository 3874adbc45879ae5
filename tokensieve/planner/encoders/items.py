"""Items: what a folder holds for an encoder, images, sound or texts, and their labels."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from tokensieve.bench.data import SUFFIXES, read_image
from tokensieve.bench.sound import SUFFIXES as SOUNDS
from tokensieve.bench.sound import read_sound

TEXTS = {".txt", ".md", ".rst", ".py"}
KINDS = {"images": "images", "sound": "clips", "texts": "texts"}
"""What a folder holds, and what is counted of it."""


@dataclass(frozen=True)
class EncoderInput:
    """One input.

    Attributes:
        name: unlike all others; kind: one of ``KINDS``; what: its file, or the text itself.
        label: what it is, where labels are given.
    """

    name: str
    kind: str
    what: Path | str
    label: str | None = None

    def read(self) -> Any:
        """The image, the wave at 16 kHz, or the text."""
        if isinstance(self.what, str):
            return self.what
        return read_image(self.what) if self.kind == "images" else read_sound(self.what)

    @property
    def mark(self) -> str:
        """A fingerprint of what it holds."""
        held = self.what.encode() if isinstance(self.what, str) else self.what.read_bytes()
        return sha256(held).hexdigest()[:16]


def read_items(
    folder: Path, labels: Path | None = None, limit: int | None = None
) -> tuple[list[EncoderInput], list[str]]:
    """The items of a folder, of the kind that most of its files are of, and why others are left out.

    A file of texts holds one a line; where a folder holds several, each of them is one text.

    Args:
        labels: a CSV file of name and label a line; limit: at most so many, in the order of their names.

    Raises:
        FileNotFoundError: no such folder. ValueError: nothing in it can be read, or a label is missing.
    """
    if not folder.exists():
        raise FileNotFoundError(f"--inputs {folder}: no such folder")
    files = [folder] if folder.is_file() else sorted(p for p in folder.rglob("*") if p.is_file() and p.name[0] != ".")
    kinds = {p: kind for p in files if (kind := _kind(p)) is not None}
    if not kinds:
        raise ValueError(f"--inputs {folder}: it holds no images, sound or texts ({len(files)} files)")
    kind = Counter(kinds.values()).most_common(1)[0][0]
    skipped = [f"{p.name}: not of the {kind} that most files are" for p in files if kinds.get(p) != kind]
    chosen = [p for p in files if kinds.get(p) == kind]
    if kind == "texts":
        items = _texts(chosen)
    else:
        base = folder if folder.is_dir() else folder.parent
        items = [EncoderInput(str(p.relative_to(base)), kind, p) for p in chosen]
    good = []
    for item in items:
        try:
            if item.kind != "texts":
                item.read()
            good.append(item)
        except ValueError as error:
            skipped.append(str(error))
        if limit is not None and len(good) == limit:
            break
    if not good:
        raise ValueError(f"--inputs {folder}: none of its {len(items)} {kind} can be read: {'; '.join(skipped[:3])}")
    return (good if labels is None else _labelled(good, labels)), skipped


def _kind(file: Path) -> str | None:
    suffix = file.suffix.lower()
    return "images" if suffix in SUFFIXES else "sound" if suffix in SOUNDS else "texts" if suffix in TEXTS else None


def _texts(files: list[Path]) -> list[EncoderInput]:
    found = {p: p.read_text(encoding="utf-8", errors="replace") for p in files}
    if len(files) == 1:
        lines = [line.strip() for line in found[files[0]].splitlines()]
        return [EncoderInput(f"line {i + 1}", "texts", line) for i, line in enumerate(lines) if line]
    return [EncoderInput(p.name, "texts", text.strip()) for p, text in found.items() if text.strip()]


def _labelled(items: list[EncoderInput], file: Path) -> list[EncoderInput]:
    with file.open(newline="", encoding="utf-8") as lines:
        known = {row[0]: row[1] for row in csv.reader(lines) if len(row) >= 2}
    missing = [i.name for i in items if i.name not in known]
    if missing:
        raise ValueError(
            f"--labels {file}: no label of {missing[0]!r}" + (f" and {len(missing) - 1} more" if missing[1:] else "")
        )
    return [EncoderInput(i.name, i.kind, i.what, known[i.name]) for i in items]
