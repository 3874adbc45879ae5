"""Tokenizers of transformers and diffusers under one protocol, with random weights."""

import pytest
import torch
from transformers import DacConfig, DacModel, EncodecConfig, EncodecModel

from tokensieve.bench.codec import judge, specs
from tokensieve.codec.tokenizer import ADAPTERS
from tokensieve.integrations.codec.transformers import Audio


def dac():
    config = DacConfig(
        encoder_hidden_size=8, downsampling_ratios=[2, 4], decoder_hidden_size=16, n_codebooks=3, codebook_size=32,
        codebook_dim=4, sampling_rate=16000,
    )  # fmt: skip
    return DacModel(config)


def encodec():
    config = EncodecConfig(
        target_bandwidths=[20.0], sampling_rate=16000, num_filters=4, hidden_size=16, codebook_size=32, codebook_dim=16,
        upsampling_ratios=[4, 2], num_lstm_layers=1,
    )  # fmt: skip
    return EncodecModel(config)


@pytest.mark.parametrize("build", [dac, encodec])
def test_audio_goes_in_and_comes_out_as_long(build):
    torch.manual_seed(0)
    made = Audio(build())
    wave = 0.1 * torch.randn(3, 1, 1, 1000)
    back, indices, kept, skipped = judge.coded_by(made, wave, None, "audio")
    assert back.shape == wave.shape
    assert bool(kept.all())
    assert skipped == {}
    assert made.rate == 16000
    assert made.levels == (32,) * indices.shape[2]
    assert 0 <= int(indices.min()) <= int(indices.max()) < 32
    assert torch.allclose(made.decode(indices), back, atol=1e-5)


def test_a_folder_of_transformers_is_a_spec(tmp_path):
    dac().save_pretrained(tmp_path)
    assert isinstance(specs.parse(f"transformers:{tmp_path}").tokenizer(), Audio)
    assert set(ADAPTERS.names()) == {"diffusers", "transformers"}


def test_image_autoencoders_of_diffusers(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    blocks = {"block_out_channels": (8,), "norm_num_groups": 4, "down_block_types": ("DownEncoderBlock2D",),
              "up_block_types": ("UpDecoderBlock2D",), "layers_per_block": 1}  # fmt: skip
    images = torch.rand(2, 3, 16, 16)
    coded = diffusers.VQModel(latent_channels=4, num_vq_embeddings=32, **blocks)
    coded.save_pretrained(tmp_path / "vq")
    made = specs.parse(f"diffusers:{tmp_path / 'vq'}").tokenizer()
    back, indices, _, _ = judge.coded_by(made, images, None, "vq")
    assert (back.shape, made.levels) == (images.shape, (32,))
    assert torch.allclose(back, coded.eval()(2 * images - 1).sample / 2 + 0.5, atol=1e-5)
    near = made.neighbours(indices.flatten(0, 1), torch.Generator())
    assert bool((near != indices.flatten(0, 1)).all())
    plain = diffusers.AutoencoderKL(latent_channels=4, **blocks)
    plain.save_pretrained(tmp_path / "kl")
    made = specs.parse(f"diffusers:{tmp_path / 'kl'}").tokenizer()
    back, indices, _, _ = judge.coded_by(made, images, None, "kl")
    assert back.shape == images.shape
    assert indices is None
