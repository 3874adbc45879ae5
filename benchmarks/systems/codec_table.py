"""The check of the survey of audio tokens: one table for every quantizer, of images and of speech."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import wavfile
from scipy.signal import lfilter
from sklearn.datasets import load_digits

from benchmarks.systems import codec_bed
from benchmarks.systems.bed import CheckContext, Outcome, check
from tokensieve.bench.codec.run import Config, run
from tokensieve.bench.codec.signals import LENGTH
from tokensieve.codec import list_quantizers

RATE, EACH, STEPS = 16000, 10, 100
SPECS = {
    "bsq": "bsq:8", "cascade": "cascade:256", "channels": "channels:256", "depths": "depths:16", "fsq": "fsq:16,16",
    "gsq": "gsq:16,groups=2", "joint": "joint:256", "lfq": "lfq:8", "product": "product:16", "quantile": "quantile:2",
    "residual": "residual:16", "scales": "scales:256", "set": "set:256", "tied": "tied:256", "vq": "vq:256",
}  # fmt: skip
"""Each of 8 bits a token, but ``quantile``, whose every dimension has one; ``scales`` has more tokens."""
VOWELS = {
    "a": (730, 1090, 2440),
    "e": (530, 1840, 2480),
    "i": (270, 2290, 3010),
    "o": (570, 840, 2410),
    "u": (300, 870, 2240),
}
"""Their first three formants, Hz (men's means of Peterson and Barney, 1952)."""
ASKED = {"bits": "bits", "psnr": "dB", "probe": "probe", "lm_bits": "bits a token of the model"}


def spoken(vowel: str, draw: np.random.Generator) -> np.ndarray:
    """A vowel of a drawn voice as int16: pulses of its pitch through a resonance for each formant, over a little noise."""
    pitch, tract = draw.uniform(90, 250), draw.uniform(0.9, 1.2)
    phase = np.cumsum(pitch * (1 + 0.02 * np.sin(np.arange(LENGTH) * draw.uniform(2, 6) * 2 * np.pi / RATE)) / RATE)
    wave = np.diff(np.floor(phase), prepend=0.0) + 0.003 * draw.standard_normal(LENGTH)
    for formant in VOWELS[vowel]:
        radius, angle = math.exp(-math.pi * 90 / RATE), 2 * math.pi * tract * formant / RATE
        wave = lfilter([1.0], [1.0, -2 * radius * math.cos(angle), radius**2], wave)
    return (wave / np.abs(wave).max() * 20000).astype(np.int16)


def written(folder: Path) -> tuple[Path, Path]:
    """Folders of digits (PNG) and of vowels (WAV); folders within are labels."""
    digits, speech, draw = load_digits(), folder / "speech", np.random.default_rng(0)
    images = folder / "images"
    for label in range(10):
        (images / str(label)).mkdir(parents=True, exist_ok=True)
        for i, image in enumerate(digits.images[digits.target == label][:EACH]):
            Image.fromarray((image * 15.9).astype(np.uint8)).save(images / str(label) / f"{i}.png")
    for vowel in VOWELS:
        (speech / vowel).mkdir(parents=True, exist_ok=True)
        for i in range(2 * EACH):
            wavfile.write(speech / vowel / f"{i}.wav", RATE, spoken(vowel, draw))
    return images, speech


@check(215)
def audio_survey(bed: CheckContext) -> Outcome:
    """100 digits of 16 x 16 pixels and 100 vowels made by formants (1 s at 16 kHz), 16 tokens, 100 steps, seed 0: bits of a
    signal, PSNR, linear probe and bits a token of the small model for every quantizer of the library, by `codec bench`, beside
    default and revived VQ, none of them collapsed; grids that grow are no shape of speech."""
    assert set(SPECS) == set(list_quantizers())
    home = codec_bed.FILE.parent / f"table-{codec_bed.mark(__file__)}"
    n: dict[str, Any] = {}
    whole = True
    for kind, folder in zip(("images", "speech"), written(home), strict=True):
        asked = tuple(s for name, s in SPECS.items() if kind == "images" or name != "scales")
        rows = run(Config(folder, asked, (16,), home / f"{kind}-out", size=16, steps=STEPS))["rows"]
        for name in (*asked, "vq, as published", "vq, revived"):
            row = rows[f"{name}@16"]
            values = [row.get(key) for key in ASKED]
            whole = whole and not row["collapsed"] and all(v is not None and math.isfinite(v) for v in values)
            told = ", ".join(f"{value:.4g} {what}" for value, what in zip(values, ASKED.values(), strict=True))
            n[f"{kind}, {name}"] = told + (", collapsed" if row["collapsed"] else "")
    return whole, n
