"""Tiny random models of real architectures, and prompts for them: no download, no processor, under a second each."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

VOCAB, IMAGE, VIDEO = 64, 5, 4
MOST = 10_000_000  # parameters

# Fields that many configs share, and what they shrink to; what a config does not have is passed over.
EVERY = {
    "vocab_size": VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "image_token_id": IMAGE,
    "image_token_index": IMAGE, "video_token_id": VIDEO, "video_token_index": VIDEO, "max_position_embeddings": 512,
    "num_attention_heads": 4, "num_heads": 4, "tie_word_embeddings": False, "vision_start_token_id": 3,
    "num_local_experts": 2, "num_experts": 2, "n_routed_experts": 2, "moe_num_experts": 2, "num_experts_per_tok": 1,
    "shared_expert_intermediate_size": 32, "n_group": 1, "topk_group": 1, "additional_vocab_size": 0, "moe_intermediate_size": 32,
}  # fmt: skip
TEXT = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_key_value_heads": 2, "head_dim": 16,
    "ffn_dim": 96, "word_embed_proj_dim": 64, "sliding_window": 24, "linear_num_value_heads": 4,
    "linear_num_key_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_head_dim": 16,
    "linear_num_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16,
    "vocab_size_per_layer_input": VOCAB, "hidden_size_per_layer_input": 16,
}  # fmt: skip
SIGHT = {
    "hidden_size": 32, "embed_dim": 32, "intermediate_size": 48, "num_hidden_layers": 3, "depth": 3, "image_size": 32,
    "patch_size": 4, "out_hidden_size": 64, "hidden_dim": 64, "text_hidden_size": 64, "projection_dim": 64,
    "num_key_value_heads": 4, "head_dim": 8, "mlp_dim": 48, "output_channels": 32, "base_channels": 32, "latent_channels": 32,
    "num_embeddings": VOCAB, "pos_emb_height": 8, "pos_emb_width": 8, "n_layers": 3, "position_embedding_size": 64,
    "pooling_kernel_size": 2, "mm_embed_dim": 32, "mm_posemb_size": 64, "output_proj_dims": 32, "projector_hidden_size": 64,
    "projection_intermediate_size": 64,
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """What generic shrinking does not know of an architecture.

    Attributes:
        whole, text, vision: overrides of the config and its parts; parts: of its other parts.
        frames_apart: whether text stands between the frames of a video.
        unfolded: whether patches come as squares ``(count, 3, side, side)``.
        video: the placeholder of videos.
    """

    whole: dict[str, Any] = field(default_factory=dict)
    text: dict[str, Any] = field(default_factory=dict)
    vision: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)
    frames_apart: bool = False
    unfolded: bool = False
    video: int = VIDEO


MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}}
PINS = {"image_grid_pinpoints": [[32, 64], [64, 32], [64, 64]]}
HW_FIRST = {"rope_parameters": MROPE["rope_parameters"] | {"mrope_section": [3, 3, 2]}}
HALF = {"rope_parameters": MROPE["rope_parameters"] | {"partial_rotary_factor": 0.5, "mrope_section": [1, 1, 2]}}
SHARED = {
    "num_hidden_layers": 6, "global_head_dim": 32, "layer_types": ["sliding_attention", "full_attention"] * 3,
    "num_kv_shared_layers": 2,
}  # fmt: skip
INDEXER = ("n_heads", "kv_heads", "head_dim", "budget", "compress_ratio")
MLA = {"num_key_value_heads": 4, "head_dim": 8}
GEMMA = Family(whole={"mm_tokens_per_image": 16})
GLM = Family(text=MROPE, frames_apart=True, video=IMAGE)
GLM_HALF = replace(GLM, text=HALF)
DEEP = Family(text=MROPE, vision={"deepstack_visual_indexes": [0, 1]}, frames_apart=True)
HYBRID = Family(text=HALF, frames_apart=True)
TILE = Family(whole=PINS)
FAMILIES: dict[str, Family] = {
    "aria": Family(whole={"projector_patch_to_query_dict": {64: 16}}),
    "cosmos3_edge": replace(DEEP, vision={}),
    "cosmos3_omni": DEEP,
    "chameleon": Family(whole={"vocabulary_map": {"<image>": IMAGE}}),
    "cohere_compass": replace(DEEP, text={"rope_parameters": {"full_attention": MROPE["rope_parameters"]}}),
    "deepseek_ocr2": Family(
        text={"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]},
        parts={"sam_config": {"image_size": 128, "downsample_channels": [64, 32]}},
    ),
    "emu3": Family(
        whole={"vocabulary_map": {"<image>": IMAGE, "<|extra_200|>": 6}}, parts={"vq_config": {"hidden_size": 128}}
    ),
    "glm5_next": Family(text={**MLA, "qk_rope_head_dim": 0, "head_dim": 0}),
    "ernie4_5_vl_moe": Family(text=HW_FIRST),
    "gemma3": GEMMA,
    "gemma4": Family(text=SHARED),
    "gemma4_unified": Family(text=SHARED),
    "glm46v": GLM,
    "glm4v": GLM,
    "glm4v_moe": GLM_HALF,
    "glm_ocr": GLM,
    "glmga": GLM,
    "hunyuan_vl": Family(text=MROPE),
    "kimi_k25": Family(text=MLA, whole={"projection_hidden_size": 32}, unfolded=True),
    "llama4": Family(
        text={"num_local_experts": 2, "intermediate_size_mlp": 96, "attention_chunk_size": 24},
        vision={
            "vision_output_dim": 64,
            "projector_input_dim": 64,
            "projector_output_dim": 64,
            "intermediate_size": 128,
        },
    ),
    "llava_next": TILE,
    "llava_next_video": TILE,
    "llava_onevision": TILE,
    "mllama": Family(
        text={"cross_attention_layers": [1, 3]},
        vision={
            "image_size": 16,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "attention_heads": 4,
            "max_num_tiles": 2,
            "intermediate_layers_indices": [0],
            "vision_output_dim": 64,
            "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
        },
    ),
    "minicpmv4_6": Family(text=HALF, whole={"insert_layer_id": 1}, frames_apart=True),
    "minicpmv4_7": Family(text=HALF, whole={"insert_layer_id": 1}, frames_apart=True),
    "mistral3": Family(whole={"vision_feature_layer": -1}),
    "molmo2": Family(parts={"adapter_config": {"vision_feature_layer": [2, 1]}}, video=IMAGE),
    "muse_glimmer": Family(whole={"out_hidden_size": 128, "projector_hidden_size": 64}),
    "paddleocr_vl": Family(text=MROPE, unfolded=True),
    "paligemma": Family(whole={"projection_dim": 64}),
    "qwen2_5_omni_thinker": Family(text=MROPE, whole={"vision_start_token_id": 3, "vision_end_token_id": 6}),
    "qwen2_5_vl": Family(text=MROPE, vision={"window_size": 16, "fullatt_block_indexes": [2]}),
    "qwen2_vl": Family(text=MROPE, vision={"hidden_size": 64}),
    "qwen3_omni_moe_thinker": replace(
        DEEP,
        text={**MROPE, "sliding_window": None},
        whole={"vision_start_token_id": 3, "vision_end_token_id": 6},
        frames_apart=False,
    ),
    "qwen4_exp": Family(text={f"indexer_{k}": v for k, v in zip(INDEXER, (2, 1, 16, 16, 4), strict=True)}),
    "qwen3_5": HYBRID,
    "qwen3_5_moe": HYBRID,
    "qwen3_vl": DEEP,
    "ovis2": Family(whole={"hidden_size": 64}),
    "qwen3_vl_moe": replace(DEEP, text={**MROPE, "sliding_window": None}),
    "shieldgemma2": GEMMA,
    "vipllava": Family(whole={"vision_feature_layer": [-2, -1]}),
}


def family(name: str) -> Family:
    """What generic shrinking does not know of an architecture."""
    return FAMILIES.get(name, Family())


def names() -> list[str]:
    """Model types of transformers' image-text-to-text mapping."""
    return list(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)


def config(name: str) -> Any:
    """The shrunk config of an architecture."""
    known = family(name)
    hints = {"text_config": known.text, "vision_config": known.vision, **known.parts}
    return shrunk(CONFIG_MAPPING[name], known.whole, hints)


def shrunk(
    kind: Any, own: dict[str, Any], hints: dict[str, dict[str, Any]], shared: dict[str, Any] | None = None
) -> Any:
    """A config and its parts, made small.

    Args:
        own: fields it takes as they are; hints: those of parts, at any depth.
        shared: what fields of its sort shrink to; by default those of a language model, where it has no part for one.
    """
    default = kind()
    parts = {}
    for part, usual in (getattr(kind, "sub_configs", None) or {}).items():
        inner = getattr(default, part, None)
        if inner is not None or part == "vision_config":  # some leave even that out
            made = usual if inner is None else type(inner)
            parts[part] = shrunk(made, hints.get(part, {}), hints, TEXT if "text" in part else SIGHT)
    if shared is None:
        shared = {} if "text_config" in parts else TEXT
    alias = getattr(kind, "attribute_map", {})
    given = {alias.get(k, k): v for k, v in own.items()}
    for field_name, value in {**EVERY, **shared}.items():
        found = _value(default, field_name)
        if found is not MISSING:
            given.setdefault(alias.get(field_name, field_name), _fit(value, found))
    return kind(**{**parts, **given})


MISSING = object()


def _value(config: Any, name: str) -> Any:
    try:
        return getattr(config, name, MISSING)
    except RuntimeError:  # it differs from layer to layer
        return None


def _fit(value: Any, default: Any) -> Any:
    """``value``, once for each entry of a list of numbers."""
    if isinstance(default, (list, tuple)) and default and isinstance(value, int):
        return type(default)([value] * len(default))
    return value


def size(name: str) -> int:
    """Parameters of the tiny model, before any is made."""
    with torch.device("meta"):
        return sum(p.numel() for p in _built(name, None).parameters())


def model(name: str, attn: str | None = None) -> nn.Module:
    """A tiny model with random weights: attention sharpened, so that it is not near uniform, and no matrix left at zero."""
    torch.manual_seed(0)
    made: Any = _built(name, attn)
    with torch.no_grad():
        for parameter, value in made.named_parameters():
            if any(part in parameter for part in ("q_proj.w", "k_proj.w")):
                value.mul_(8)
            elif value.dim() > 1 and not bool(value.any()):
                value.normal_(std=0.1)
    if hasattr(made, "generation_config"):
        made.generation_config.eos_token_id = None
    return made


def causal(name: str) -> nn.Module:
    """A tiny causal language model of an architecture that needs no hints, its attention sharpened likewise."""
    torch.manual_seed(0)
    made: Any = AutoModelForCausalLM.from_config(shrunk(CONFIG_MAPPING[name], {}, {})).eval()
    with torch.no_grad():
        for parameter, value in made.named_parameters():
            if any(
                part in parameter for part in ("q_proj.w", "k_proj.w", "query_key_value.w", "qkv_proj.w", "c_attn.w")
            ):
                value.mul_(8)
    made.generation_config.eos_token_id = None
    return made


def _built(name: str, attn: str | None) -> nn.Module:
    asked = {"attn_implementation": attn} if attn else {}
    return AutoModelForImageTextToText.from_config(config(name), **asked).eval()
