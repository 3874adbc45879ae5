"""Signals: images or speech of a folder, or generated scenes, as tensors; a fifth is held out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokensieve.testbed import generate

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SPEECH = (".wav",)
LENGTH = 16384
"""Samples of a piece of speech: one second at 16 kHz, and divisible by the usual numbers of tokens."""
HELD_OUT = 5
FEWEST = 10


@dataclass(frozen=True)
class SignalSet:
    """What tokenizers are fitted to and judged by.

    Attributes:
        kind: "images", ``(n, 3, size, size)`` from 0 to 1, or "speech", ``(n, 1, 1, length)`` from -1 to 1; float32.
        train, test: the signals; names: those of the test signals.
        labels: for train and test, or None: the folders right below the given one, where there are two at least.
        rate: Hz of speech.
        skipped: why a file was left out, by its name.
        source: what they are, in words.
        mark: by which other data is told.
    """

    kind: str
    train: Tensor
    test: Tensor
    names: tuple[str, ...]
    labels: tuple[Tensor, Tensor] | None
    rate: int | None
    skipped: dict[str, str]
    source: str
    mark: str

    @property
    def peak(self) -> float:
        """The span of values, for the signal-to-noise ratio."""
        return 1.0 if self.kind == "images" else 2.0


def scenes(count: int, size: int, seed: int = 0) -> SignalSet:
    """Generated scenes: digits, shapes and words on plain grounds."""
    pictures = [_pixels(generate(seed, i, "train").image, size) for i in range(count)]
    return _split("images", pictures, [f"scene {i}" for i in range(count)], None, None, {}, f"{count} generated scenes")


def folder(path: Path, size: int, limit: int | None = None) -> SignalSet:
    """The images of a folder and below it, cut to their middle square and brought to ``size`` pixels, or its speech (WAV).

    Raises:
        ValueError: there are fewer than ten of either, both kinds, or speech of several sampling rates.
    """
    if not path.is_dir():
        raise ValueError(f"{path} is no folder")
    files = sorted(f for f in path.rglob("*") if f.suffix.lower() in (*IMAGES, *SPEECH))
    kinds = {f.suffix.lower() in SPEECH for f in files}
    if len(kinds) == 2:
        raise ValueError(f"{path} holds images and speech; give a folder of one kind")
    speech = kinds == {True}
    files = files if limit is None else files[:: max(1, len(files) // limit)][:limit]
    read, held, skipped, rates = [], [], {}, {}
    for file in files:
        name = str(file.relative_to(path))
        try:
            if speech:
                rate, wave = _wave(file)
                pieces = wave[: len(wave) // LENGTH * LENGTH].reshape(-1, 1, 1, LENGTH)
                if not len(pieces):
                    raise ValueError(f"{len(wave)} samples; a piece is {LENGTH}")
                if not np.isfinite(pieces).all():
                    raise ValueError("samples that are not finite")
                rates[name] = rate
                read += list(torch.from_numpy(pieces))
                held += [f"{name} {i}" if len(pieces) > 1 else name for i in range(len(pieces))]
            else:
                read.append(_read_image(file, size))
                held.append(name)
        except Exception as problem:  # whatever a reader makes of a damaged file
            skipped[name] = f"{type(problem).__name__}: {problem}"
    if len(set(rates.values())) > 1:
        first, rate = next(iter(rates.items()))
        other = next(name for name in rates if rates[name] != rate)
        raise ValueError(f"{first} has {rate} Hz, {other} {rates[other]} Hz; bring all to one rate")
    if len(read) < FEWEST:
        told = "".join(f"; {name}: {why}" for name, why in list(skipped.items())[:3])
        raise ValueError(f"{path} holds {len(read)} readable images ({', '.join(IMAGES)}) or pieces of speech "
                         f"({', '.join(SPEECH)}); {FEWEST} is the least{told}")  # fmt: skip
    tops = [Path(name).parts[0] if len(Path(name).parts) > 1 else "" for name in held]
    labels = tops if len(set(tops)) > 1 and "" not in tops else None
    what = f"{len(read)} {'pieces of speech' if speech else 'images'} of {path.name}"
    return _split("speech" if speech else "images", read, held, labels, next(iter(rates.values()), None), skipped, what)


def _split(
    kind: str, read: list[Tensor], names: list[str], labels: list[str] | None, rate: int | None,
    skipped: dict[str, str], source: str,
) -> SignalSet:  # fmt: skip
    """A fifth, drawn by a fixed seed, is held out; of a file in pieces, all or none."""
    whole = torch.stack(read)
    files = [name.rsplit(" ", 1)[0] if kind == "speech" else name for name in names]
    known = sorted(set(files))
    order = torch.randperm(len(known), generator=torch.Generator().manual_seed(0)).tolist()
    out = {known[i] for i in order[: max(1, len(known) // HELD_OUT)]}
    test = torch.tensor([f in out for f in files])
    mark = hashlib.sha256(whole.numpy().tobytes() + "\n".join(names).encode()).hexdigest()
    classes: dict[str, int] = {c: i for i, c in enumerate(sorted(set(labels or ())))}
    told = torch.tensor([classes[c] for c in labels]) if labels else None
    return SignalSet(
        kind, whole[~test], whole[test], tuple(n for n, t in zip(names, test.tolist(), strict=True) if t),
        None if told is None else (told[~test], told[test]), rate, skipped, source, mark,
    )  # fmt: skip


def _read_image(file: Path, size: int) -> Tensor:
    from PIL import Image, ImageOps

    with Image.open(file) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode.startswith(("I", "F")):
            # Pillow would cut these off at 255.
            values = np.asarray(image, dtype=np.float32)
            if image.mode == "F" or not 0 <= values.min() <= values.max() <= 65535:
                raise ValueError(f"pixels of mode {image.mode} whose range is not known; bring them to 8 or 16 bits")
            image = Image.fromarray((values / 65535 * 255).round().astype(np.uint8))
        return _pixels(image.convert("RGB"), size)


def _pixels(image: Any, size: int) -> Tensor:
    from PIL import Image

    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(square, dtype=np.float32) / 255).permute(2, 0, 1).contiguous()


def _wave(file: Path) -> tuple[int, np.ndarray]:
    """Rate and samples from -1 to 1, the mean of the channels."""
    from scipy.io import wavfile

    rate, data = wavfile.read(file)
    if data.dtype.kind == "u":
        data = data.astype(np.float32) - 128
        top = 128.0
    else:
        top = float(np.iinfo(data.dtype).max) + 1 if data.dtype.kind == "i" else 1.0
    wave = data.astype(np.float32) / top
    return int(rate), wave if wave.ndim == 1 else wave.mean(1)
