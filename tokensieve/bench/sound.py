"""Sound: files of any rate, depth and number of channels as one wave at the rate that a model takes."""

from __future__ import annotations

from math import gcd
from pathlib import Path

import numpy as np

from tokensieve.extras import install

WAVES = {".wav"}
SUFFIXES = WAVES | {".flac", ".ogg", ".mp3", ".aiff", ".aif"}
"""Files that are taken for sound; all but the first are read by `soundfile`."""


def read_sound(file: Path, rate: int = 16_000) -> np.ndarray:
    """``(samples,)`` float32 in -1 to 1 at ``rate`` a second, the mean of the channels.

    Raises:
        ValueError: it cannot be read, holds no sample, or needs a package that is missing.
    """
    given, wave = _wave(file) if file.suffix.lower() in WAVES else _other(file)
    mono = wave if wave.ndim == 1 else wave.mean(1)
    if not len(mono):
        raise ValueError(f"{file}: it holds no sound")
    if given != rate:
        from scipy.signal import resample_poly

        common = gcd(given, rate)
        mono = resample_poly(mono, rate // common, given // common)
    return np.ascontiguousarray(mono, dtype=np.float32)


def _wave(file: Path) -> tuple[int, np.ndarray]:
    from scipy.io import wavfile

    try:
        rate, x = wavfile.read(file)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{file}: it cannot be read as wav: {error}") from error
    if x.dtype.kind == "f":
        return rate, x.astype(np.float64)
    if x.dtype == np.uint8:  # of eight bits alone, silence is 128
        return rate, (x.astype(np.float64) - 128) / 128
    return rate, x.astype(np.float64) / -float(np.iinfo(x.dtype).min)  # 24 bits come in the upper bytes of 32


def _other(file: Path) -> tuple[int, np.ndarray]:
    try:
        import soundfile
    except ImportError as error:
        raise ValueError(f"{file}: only .wav is read without `soundfile`; {install('sound')}") from error
    try:
        x, rate = soundfile.read(file, dtype="float64")
    except RuntimeError as error:
        raise ValueError(f"{file}: {error}") from error
    return int(rate), x
