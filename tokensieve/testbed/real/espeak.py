"""Sentences spoken by espeak-ng, whose library and voices come inside the wheel `espeakng-loader`."""

from __future__ import annotations

import ctypes
from functools import cache

import numpy as np
from scipy.signal import resample_poly

from tokensieve.extras import Lazy

espeakng_loader = Lazy("espeakng_loader", "real")
RETRIEVAL, UTF8, SPEED = 1, 1, 1
"""Of espeak-ng's speak_lib.h: sound is handed back, not played; how a text is written; the parameter of its speed."""
Heard = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


def speak(text: str, voice: str = "en-us", speed: int = 150, rate: int = 16_000) -> np.ndarray:
    """``(samples,)`` float32 in -1 to 1: a text that is read aloud.

    espeak-ng goes on from the state in which the last text left it: the same texts in the same order are the same in every
    process, and one said twice differs by some samples.

    Args:
        voice: of espeak-ng, such as "en-us", "en-gb-x-rp" or "en-us+f3"; speed: words a minute; rate: samples a second.

    Raises:
        ImportError: the wheel is not installed. ValueError: no such voice, or nothing was said.
        OSError: the library cannot be loaded, or did not find its voices.
    """
    library, own = _started()
    if library.espeak_SetVoiceByName(voice.encode()):
        raise ValueError(f"voice={voice!r}: espeak-ng has none of this name; 'en-us' is one that it has")
    parts: list[np.ndarray] = [np.zeros(1, np.int16)]

    def heard(samples: ctypes._Pointer[ctypes.c_short], count: int, events: int | None) -> int:
        if samples and count:
            parts.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    called = Heard(heard)  # held while it can be called
    library.espeak_SetSynthCallback(called)
    library.espeak_SetParameter(SPEED, speed, 0)
    said = text.encode()
    failed = library.espeak_Synth(said, len(said) + 1, 0, 0, 0, UTF8, None, None) or library.espeak_Synchronize()
    wave = np.concatenate(parts)
    if failed or not wave.any():
        raise ValueError(f"text={text!r}: espeak-ng said nothing of it ({failed})")
    return resample_poly(wave / 2.0**15, rate, own).astype(np.float32)


@cache
def _started() -> tuple[ctypes.CDLL, int]:
    """The library, which starts once in a process, and samples a second that it gives."""
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    library.espeak_Synth.argtypes = [
        ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int, ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p,
        ctypes.c_void_p,
    ]  # fmt: skip
    voices = espeakng_loader.get_data_path()
    own = library.espeak_Initialize(RETRIEVAL, 0, voices.encode(), 0)
    if own <= 0:
        raise OSError(f"espeak-ng did not start ({own}): no voices in {voices}")
    return library, own
