"""Whisper on what was said."""

import pytest
import torch

import tokensieve as ts
from benchmarks.speech import looped, rates
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
        with ts.sieve(whisper.model, "speech", margin=0.1, rest=0) as s:
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
        with ts.sieve(whisper.model, "speech", margin=0.0, rest=0):
            assert torch.equal(encoder(features).last_hidden_state, plain)


def test_silence_leaves_the_margin():
    whisper = made("WhisperForConditionalGeneration")
    with torch.no_grad(), ts.sieve(whisper.model, "speech", margin=0.1, rest=4) as s:
        whisper.model.get_encoder()(torch.full((1, 16, 60), -1.0))
    assert s.frames == (9, 30)


def test_the_rest_of_the_silence_stands_where_it_does_in_the_whole_window():
    """Where each frame sees only itself, those that are left are those of the whole window."""
    whisper = made("WhisperForConditionalGeneration").model
    encoder, features = whisper.get_encoder(), clip(20)
    for layer in encoder.layers:  # no frame sees another
        layer.self_attn.out_proj.weight.data.zero_()
    with torch.no_grad():
        plain = encoder(features).last_hidden_state
        with ts.sieve(whisper, "speech", margin=0.1, rest=4) as s:
            short = encoder(features).last_hidden_state
        assert s.frames == (19, 30)
        with ts.sieve(whisper, "speech", margin=0.1, rest=15):  # as many as there are: nothing is cut
            assert torch.equal(encoder(features).last_hidden_state, plain)
    torch.testing.assert_close(short[:, 16:], plain[:, [20, 24, 29]], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(short[:, :14], plain[:, :14], atol=1e-5, rtol=1e-4)


def test_what_speech_cannot_do_is_said():
    whisper = made("WhisperForConditionalGeneration").model
    with pytest.raises(ValueError, match="margin=-1; it must be seconds"):
        ts.sieve(whisper, "speech", margin=-1)
    with pytest.raises(ValueError, match=r"rest=0\.5; it must be a number of frames"):
        ts.sieve(whisper, "speech", rest=0.5)
    with pytest.raises(ValueError, match="no option 'edge'"):
        ts.sieve(whisper, "speech", edge=1)
    with pytest.raises(ValueError, match="nest it with another sieve"):
        ts.sieve(whisper, "speech", keep=0.5)
    with pytest.raises(ValueError, match="is no Whisper"):
        ts.sieve(made("ViTModel").model, "speech")


def test_loops_are_counted_once():
    assert looped("a b c d a b c d a b") == "a b c d"
    assert looped("x a b c a b c y") == "x a b c y"
    assert looped("slowly, slowly, slowly, slowly") == "slowly"
    assert looped("no no no") == "no no no"


def test_word_errors_are_told_with_loops_and_with_each_loop_once():
    rows = [{"said": "a b c d", "heard": "a b c d a b c d"}, {"said": "e f g h", "heard": "e f g x"}]
    assert rates(rows) == (5 / 8, 1 / 8, 1)
