"""A real Whisper on sentences that espeak-ng speaks: cut to the speech, by `generate` and by the pipeline of transformers."""

import wave as wavefile

import numpy as np
import pytest
import torch
from scipy.signal import resample_poly

import tokensieve as ts
from benchmarks.speech import LONGEST, rates, sentences
from tests.real import loaded
from tokensieve.bench.sound import read_sound
from tokensieve.planner.encoders.fidelity import words
from tokensieve.testbed.real.espeak import speak

pytest.importorskip("espeakng_loader")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whisper():
    return loaded("whisper")


@pytest.fixture(scope="module")
def clips(whisper):
    said = sentences(6)
    waves = [speak(text) for text in said]
    return said, waves, [whisper[1](x, sampling_rate=16_000, return_tensors="pt").input_features for x in waves]


def told(whisper, clips):
    model, processor = whisper
    out = []
    for text, features in zip(clips[0], clips[2], strict=True):
        with torch.no_grad():
            ids = model.generate(features, do_sample=False, num_beams=1, max_new_tokens=LONGEST)
        out.append({"said": text, "heard": processor.batch_decode(ids, skip_special_tokens=True)[0]})
    return rates(out)


def test_a_cut_hears_what_the_padded_clip_does_and_does_not_loop(whisper, clips):
    padded = told(whisper, clips)
    assert padded[0] < 0.4
    assert padded[2] == 0
    with ts.sieve(whisper[0], "speech") as s:
        cut = told(whisper, clips)
    assert s.frames[0] < 0.3 * s.frames[1]
    assert cut[2] == 0
    assert cut[0] < padded[0] + 0.1
    with ts.sieve(whisper[0], "speech"), ts.sieve(whisper[0], "tome", keep=0.5, layers=(3,), readout="merged"):
        merged = told(whisper, clips)
    assert merged[1] < padded[0] + 0.15


def saved(file, x, rate, width, channels):
    """A wav file of integers of ``width`` bytes."""
    whole = np.clip(x * 2 ** (8 * width - 1), -(2 ** (8 * width - 1)), 2 ** (8 * width - 1) - 1).astype("<i4")
    with wavefile.open(str(file), "wb") as out:
        out.setparams((channels, width, rate, 0, "NONE", ""))
        out.writeframes(np.repeat(whole, channels).view(np.uint8).reshape(-1, 4)[:, :width].tobytes())


def test_the_pipeline_of_transformers_hears_files_of_all_kinds_under_a_cut(whisper, clips, tmp_path):
    from transformers import pipeline

    model, processor = whisper
    hear = pipeline(
        "automatic-speech-recognition", model, tokenizer=processor.tokenizer, feature_extractor=processor.feature_extractor
    )  # fmt: skip
    x = clips[1][2]
    plain = words(hear(x.copy())["text"])
    assert len(plain) > 5
    with ts.sieve(model, "speech") as s:
        for rate, width, channels in ((16_000, 2, 1), (8_000, 2, 2), (44_100, 3, 2)):
            saved(tmp_path / "a.wav", resample_poly(x, rate // 100, 160), rate, width, channels)
            heard = words(hear(read_sound(tmp_path / "a.wav"))["text"])
            assert s.frames[0] < s.frames[1]
            same = sum(a == b for a, b in zip(plain, heard, strict=False))
            assert same >= 0.6 * len(plain)  # at 8 kHz some words are others
