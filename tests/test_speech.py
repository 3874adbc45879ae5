"""Whisper on what was said."""

import pytest
import torch

import tokensieve as ts
from tests.tiny_encoders import made


def clip(frames, rows=2, bands=16):
    """Log-mel features whose first frames hold sound, and silence behind."""
    x = torch.full((rows, bands, 60), -1.0)
    x[..., :frames] = torch.rand(rows, bands, frames) + 0.5
    return x


def test_a_whisper_runs_on_what_was_said_and_a_margin():
    whisper = made("WhisperForConditionalGeneration")
    whisper.model.generation_config.decoder_start_token_id = 1
    encoder, features = whisper.model.get_encoder(), clip(20)
    features[1, :, 12:] = -1.0  # the longer clip decides
    with torch.no_grad():
        plain = encoder(features).last_hidden_state
        with ts.sieve(whisper.model, "speech", margin=0.1) as s:
            short = encoder(features).last_hidden_state
            assert s.frames == (15, 30)
            whisper.model.generate(features, max_new_tokens=3)
            with pytest.raises(RuntimeError, match="cut already"):
                ts.sieve(whisper.model, "speech").attach()
            with ts.sieve(whisper.model, "tome", keep=0.5, readout="merged"):
                assert whisper(input_features=features).encoder_last_hidden_state.shape[1] == 8
        assert torch.equal(encoder(features).last_hidden_state, plain)
    assert short.shape[1] == 15
    assert encoder.config.max_source_positions == 30


def test_sound_to_the_end_is_never_cut():
    whisper = made("WhisperForConditionalGeneration")
    encoder, features = whisper.model.get_encoder(), clip(60)
    with torch.no_grad():
        plain = encoder(features).last_hidden_state
        with ts.sieve(whisper.model, "speech", margin=0.0):
            assert torch.equal(encoder(features).last_hidden_state, plain)


def test_silence_leaves_the_margin():
    whisper = made("WhisperForConditionalGeneration")
    with torch.no_grad(), ts.sieve(whisper.model, "speech", margin=0.1) as s:
        whisper.model.get_encoder()(torch.full((1, 16, 60), -1.0))
    assert s.frames == (5, 30)


def test_what_speech_cannot_do_is_said():
    whisper = made("WhisperForConditionalGeneration").model
    with pytest.raises(ValueError, match="margin=-1; it must be seconds"):
        ts.sieve(whisper, "speech", margin=-1)
    with pytest.raises(ValueError, match="no option 'edge'"):
        ts.sieve(whisper, "speech", edge=1)
    with pytest.raises(ValueError, match="nest it with another sieve"):
        ts.sieve(whisper, "speech", keep=0.5)
    with pytest.raises(ValueError, match="is no Whisper"):
        ts.sieve(made("ViTModel").model, "speech")
