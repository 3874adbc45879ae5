"""Tiny random models of real architectures, saved as hub checkpoints are: weights, tokenizer and processor, with no download."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForImageTextToText, PreTrainedTokenizerFast

from tokensieve.testbed.saved import hub_names

EOS, PAD = "<|endoftext|>", "<|pad|>"
TEXT = {
    "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 32, "max_position_embeddings": 8192, "tie_word_embeddings": False,
}  # fmt: skip
VISION = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [6, 5, 5]}


def tokenizer(special: list[str], **named: str) -> PreTrainedTokenizerFast:
    """One token for each byte, and those of the model; ``named``: what a processor asks of it by attribute."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens([EOS, PAD, *special, *named.values()])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token=EOS, pad_token=PAD, padding_side="left", extra_special_tokens=named,
        model_max_length=8192,
    )  # fmt: skip


def qwen(kind: str, **vision: Any) -> tuple[Any, Any]:
    words = tokenizer(["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"])
    ids = words.convert_tokens_to_ids
    turned = MROPE | ({"mrope_interleaved": True} if kind == "Qwen3VL" else {})
    config = getattr(transformers, f"{kind}Config")(
        text_config=TEXT | {"vocab_size": len(words), "rope_parameters": turned, "eos_token_id": words.eos_token_id},
        vision_config={"depth": 3, "num_heads": 4, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, **vision},
        image_token_id=ids("<|image_pad|>"), video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"), vision_end_token_id=ids("<|vision_end|>"), tie_word_embeddings=False,
    )  # fmt: skip
    side = vision.get("patch_size", 14)
    images = transformers.Qwen2VLImageProcessor(
        min_pixels=(2 * side) ** 2, max_pixels=(16 * side) ** 2, patch_size=side, merge_size=2, temporal_patch_size=2
    )
    videos = getattr(transformers, "Qwen3VLVideoProcessor" if kind == "Qwen3VL" else "Qwen2VLVideoProcessor")(
        patch_size=side, merge_size=2, temporal_patch_size=2
    )
    name = {"Qwen2VL": "Qwen2VLProcessor", "Qwen2_5_VL": "Qwen2_5_VLProcessor", "Qwen3VL": "Qwen3VLProcessor"}[kind]
    return config, getattr(transformers, name)(image_processor=images, tokenizer=words, video_processor=videos)


def qwen2() -> tuple[Any, Any]:
    return qwen("Qwen2VL", embed_dim=64, hidden_size=128, mlp_ratio=2)


def qwen25() -> tuple[Any, Any]:
    return qwen(
        "Qwen2_5_VL",
        hidden_size=64,
        intermediate_size=96,
        out_hidden_size=128,
        window_size=56,
        fullatt_block_indexes=[1],
    )


def qwen3() -> tuple[Any, Any]:
    return qwen(
        "Qwen3VL", hidden_size=64, intermediate_size=96, out_hidden_size=128, patch_size=16, num_position_embeddings=256,
        deepstack_visual_indexes=[0, 1],
    )  # fmt: skip


def idefics3() -> tuple[Any, Any]:
    tiles = [f"<row_{r}_col_{c}>" for r in range(1, 5) for c in range(1, 5)]
    words = tokenizer(["<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>", *tiles])
    config = transformers.Idefics3Config(
        text_config={"model_type": "llama", **TEXT, "vocab_size": len(words), "pad_token_id": words.pad_token_id,
                     "eos_token_id": words.eos_token_id, "bos_token_id": None},
        vision_config=VISION | {"image_size": 56, "patch_size": 7}, image_token_id=words.convert_tokens_to_ids("<image>"),
        scale_factor=2, tie_word_embeddings=False, pad_token_id=words.pad_token_id,
    )  # fmt: skip
    images = transformers.Idefics3ImageProcessor(size={"longest_edge": 112}, max_image_size={"longest_edge": 56})
    return config, transformers.Idefics3Processor(images, words, image_seq_len=16)


def internvl() -> tuple[Any, Any]:
    named = {
        "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }  # fmt: skip
    words = tokenizer([], **named)
    config = transformers.InternVLConfig(
        text_config={"model_type": "qwen2", **TEXT, "vocab_size": len(words), "eos_token_id": words.eos_token_id},
        vision_config=VISION | {"image_size": [56, 56], "patch_size": [7, 7]}, downsample_ratio=0.5, image_seq_length=16,
        image_token_id=words.convert_tokens_to_ids("<IMG_CONTEXT>"), tie_word_embeddings=False,
    )  # fmt: skip
    images = transformers.GotOcr2ImageProcessor(size={"height": 56, "width": 56}, crop_to_patches=True, max_patches=4)
    videos = transformers.InternVLVideoProcessor(size={"height": 56, "width": 56})
    return config, transformers.InternVLProcessor(images, words, videos, image_seq_length=16)


CLIP = VISION | {"model_type": "clip_vision_model", "image_size": 56, "patch_size": 7, "projection_dim": 64}
SIGLIP = VISION | {"model_type": "siglip_vision_model", "image_size": 56, "patch_size": 7, "vision_use_head": False}
PINS = [[56, 112], [112, 56], [112, 112], [56, 168], [168, 56]]


def next_() -> tuple[Any, Any]:
    words = tokenizer(["<image>"])
    config = transformers.LlavaNextConfig(
        text_config={"model_type": "llama", **TEXT, "vocab_size": len(words), "eos_token_id": words.eos_token_id,
                     "bos_token_id": None},
        vision_config=CLIP, image_token_index=words.convert_tokens_to_ids("<image>"), image_grid_pinpoints=PINS,
        vision_feature_layer=-2, tie_word_embeddings=False,
    )  # fmt: skip
    images = transformers.LlavaNextImageProcessor(
        size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}, image_grid_pinpoints=PINS
    )
    return config, transformers.LlavaNextProcessor(
        images, words, patch_size=7, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )


def onevision() -> tuple[Any, Any]:
    words = tokenizer(["<image>", "<video>"])
    ids = words.convert_tokens_to_ids
    config = transformers.LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **TEXT, "vocab_size": len(words), "eos_token_id": words.eos_token_id},
        vision_config=SIGLIP, image_token_index=ids("<image>"), video_token_index=ids("<video>"), image_grid_pinpoints=PINS,
        vision_feature_layer=-1, vision_feature_select_strategy="full", tie_word_embeddings=False,
    )  # fmt: skip
    images = transformers.LlavaOnevisionImageProcessor(size={"height": 56, "width": 56}, image_grid_pinpoints=PINS)
    videos = transformers.LlavaOnevisionVideoProcessor(size={"height": 56, "width": 56})
    return config, transformers.LlavaOnevisionProcessor(
        images, words, videos, num_image_tokens=64, vision_feature_select_strategy="full"
    )


PICTURE = {"qwen": "<|vision_start|><|image_pad|><|vision_end|>", "internvl": "<IMG_CONTEXT>"}
MODELS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "qwen2": qwen2, "qwen25": qwen25, "qwen3": qwen3, "idefics3": idefics3, "internvl": internvl, "next": next_,
    "onevision": onevision,
}  # fmt: skip


def picture(name: str) -> str:
    """How a picture stands in a prompt."""
    return next((said for kind, said in PICTURE.items() if name.startswith(kind)), "<image>")


def save(name: str, folder: Path) -> Path:
    """Make a model and save it."""
    config, processor = MODELS[name]()
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.xavier_uniform_(parameter.flatten(1))
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    hub_names(folder)
    return folder
