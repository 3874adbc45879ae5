"""Tiny random encoders of real architectures, and what to feed them: no download, no processor."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import CONFIG_MAPPING
from transformers.models.auto import modeling_auto as auto

from tokensieve.bench.compat import tiny_models
from tokensieve.sites.model import towers

MAPPINGS = {
    "text": "MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES",
    "images": "MODEL_FOR_IMAGE_MAPPING_NAMES",
    "backbones": "MODEL_FOR_BACKBONE_MAPPING_NAMES",
    "audio classification": "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES",
    "CTC": "MODEL_FOR_CTC_MAPPING_NAMES",
    "speech to text": "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
    "video classification": "MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES",
}
FURTHER = (
    ("modernbert", "ModernBertModel"), ("mpnet", "MPNetModel"), ("nomic_bert", "NomicBertModel"),
    ("depth_anything", "DepthAnythingForDepthEstimation"), ("sam", "SamModel"), ("clip", "CLIPModel"),
    ("clip_vision_model", "CLIPVisionModel"), ("siglip", "SiglipModel"),
)  # fmt: skip
"""Encoders that stand in none of them."""

SIDE, PATCH, SAMPLES, FRAMES, TEXTS = 32, 4, 4000, 60, (24, 15)
SOUND = {
    "hidden_size": 32, "num_hidden_layers": 4, "intermediate_size": 48, "num_mel_bins": 16, "encoder_layers": 4,
    "decoder_layers": 2, "d_model": 32, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48, "max_source_positions": FRAMES // 2, "max_target_positions": 32, "classifier_proj_size": 16,
    "conv_dim": 16, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "feature_projection_input_dim": 160,
    "encoder_num_hidden_layers": 4, "decoder_num_hidden_layers": 2, "encoder_num_attention_heads": 4,
    "decoder_num_attention_heads": 4, "encoder_num_key_value_heads": 4, "decoder_num_key_value_heads": 4,
    "speech_encoder_layers": 4, "speech_encoder_attention_heads": 4, "speech_encoder_intermediate_size": 48, "max_length": 64,
    "patch_size": 8, "frequency_stride": 8, "time_stride": 8,
}  # fmt: skip
IMAGE = {
    "hidden_size": 32, "num_hidden_layers": 4, "intermediate_size": 64, "image_size": SIDE, "patch_size": PATCH,
    "num_frames": 4, "frames_per_clip": 4, "crop_size": SIDE, "tubelet_size": 2, "num_detection_tokens": 5, "projection_dim": 16,
    "head_dim": 8, "pretrain_image_size": SIDE, "atten_window": 4, "decoder_num_hidden_layers": 1, "decoder_hidden_size": 32,
    "decoder_num_attention_heads": 4, "decoder_intermediate_size": 48, "pred_hidden_size": 32, "pred_num_hidden_layers": 1,
    "pred_num_attention_heads": 4, "num_key_value_heads": 4,
}  # fmt: skip
LETTERS = {
    "hidden_size": 32, "num_hidden_layers": 4, "intermediate_size": 48, "embedding_size": 32, "dim": 32, "hidden_dim": 48,
    "n_layers": 4, "n_heads": 4, "emb_dim": 32, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 4, "head_dim": 8,
    "num_key_value_heads": 4, "max_position_embeddings": 64, "type_vocab_size": 2, "position_buckets": 16,
    "intra_bottleneck_size": 32,
}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {
    "beit": {"use_relative_position_bias": True, "out_indices": [2, 4]},
    "data2vec-vision": {"use_relative_position_bias": True},
    "yolos": {"image_size": [SIDE, SIDE]},
    "dpt": {"backbone_out_indices": [0, 1, 2, 3], "is_hybrid": False},
    "audio-spectrogram-transformer": {"num_mel_bins": 16},
    "deberta": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": 32},
    "t5gemma": {"is_encoder_decoder": False},
    "modernbert": {"global_attn_every_n_layers": 2, "local_attention": 8},
    "vjepa2": {"num_pooler_layers": 1},
    "depth_anything": {
        "backbone_config": transformers.Dinov2Config(
            hidden_size=32,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=SIDE,
            patch_size=PATCH,
            out_indices=[1, 2, 3, 4],
            reshape_hidden_states=False,
        ),
        "neck_hidden_sizes": [8, 8, 8, 8],
        "fusion_hidden_size": 8,
        "head_hidden_size": 8,
        "patch_size": PATCH,
        "reassemble_hidden_size": 32,
    },
    "swin": {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4},
    "roc_bert": {"pronunciation_vocab_size": 64, "shape_vocab_size": 64},
    "reformer": {"axial_pos_embds": False},
    "vitpose_backbone": {"image_size": [SIDE, SIDE], "patch_size": [PATCH, PATCH]},
    "sam": {},
}
"""What generic shrinking does not know of an architecture."""


class TooLarge(Exception):
    """A model has too many weights to be made here, and nothing speaks against a sieve."""


@dataclass(frozen=True)
class Architecture:
    """One row: a model type and the class that it is loaded as.

    Attributes:
        mappings: those of transformers' that it stands in; () for one of our own list.
    """

    name: str
    kind: str
    mappings: tuple[str, ...] = field(default=())


def architectures() -> list[Architecture]:
    """Every encoder of transformers' mappings, and those of our own list, each class once."""
    found: dict[tuple[str, str], list[str]] = {}
    for label, mapping in MAPPINGS.items():
        for name, kinds in getattr(auto, mapping, {}).items():
            for kind in kinds if isinstance(kinds, (tuple, list)) else (kinds,):
                found.setdefault((name, kind), []).append(label)
    for one in FURTHER:
        if hasattr(transformers, one[1]):
            found.setdefault(one, [])
    return [Architecture(name, kind, tuple(labels)) for (name, kind), labels in found.items()]


def model(what: Architecture, attn: str = "sdpa") -> Any:
    """It, tiny, with random weights and attention that is not near uniform."""
    torch.manual_seed(0)
    cls = getattr(transformers, what.kind)
    config = _config(what, cls)
    config._attn_implementation = attn if getattr(cls, "_supports_sdpa", False) else "eager"
    with torch.device("meta"):
        outline = cls(config)
        size = sum(p.numel() for p in outline.parameters())
    if size > tiny_models.MOST:
        towers.tower(outline)
        raise TooLarge(f"{size / 1e6:.0f} million parameters after shrinking")
    made = cls(config).float().eval()
    if what.kind.startswith("ViTMAE"):
        made.config.mask_ratio = 0.0
    with torch.no_grad():
        for name, value in made.named_parameters():
            if any(part in name for part in ("q_proj.w", "k_proj.w", "query.w", "key.w")):
                value.mul_(8)
            elif "position" in name or "relative" in name:
                value.normal_(std=0.5)
    return made


def refusal(what: Architecture) -> str:
    """Why a model with the config's own sizes is refused; "" where it is not, or cannot be outlined either."""
    cls = getattr(transformers, what.kind)
    try:
        with torch.device("meta"):
            outline = cls(cls.config_class())
        towers.tower(outline)
    except ValueError as error:
        return str(error) if "cannot be sieved" in str(error) else ""
    except Exception:  # whatever a foreign constructor raises
        return ""
    return ""


def _config(what: Architecture, cls: Any) -> Any:
    kind = getattr(cls, "config_class", None) or CONFIG_MAPPING[what.name]
    takes = cls.main_input_name
    shared = {"input_ids": LETTERS, "pixel_values": IMAGE, "pixel_values_videos": IMAGE}.get(takes, SOUND)
    return tiny_models.shrunk(kind, OWN.get(what.name, {}), {"text_config": LETTERS, "vision_config": IMAGE}, shared)


def inputs(model: Any) -> dict[str, Tensor]:
    """Two rows of noise for it: images, videos, waves or spectrograms, or two texts of different lengths."""
    g, takes, config = torch.Generator().manual_seed(1), model.main_input_name, model.config
    if takes in ("pixel_values", "pixel_values_videos"):
        out = {takes: torch.randn(_shape(model), generator=g)}
        if "noise" in _parameters(model):
            out["noise"] = torch.rand(2, (SIDE // PATCH) ** 2, generator=g)
        if "input_ids" in _parameters(model):
            out |= _texts(config, g)
        return out
    if takes == "input_values" and hasattr(config, "max_length") and hasattr(config, "frequency_stride"):
        return {takes: torch.randn(2, config.max_length, config.num_mel_bins, generator=g)}
    if takes == "input_values":
        made = {takes: torch.randn(2, SAMPLES, generator=g), "attention_mask": _mask(SAMPLES, SAMPLES * 2 // 3)}
    elif takes == "input_features":
        made = _features(model, g)
    else:
        made = _texts(config, g)
        if "pixel_values" in _parameters(model):
            made["pixel_values"] = torch.randn(2, 3, SIDE, SIDE, generator=g)
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in _parameters(model):
        made["decoder_input_ids"] = torch.ones(2, 3, dtype=torch.long)
    return made


def _shape(model: Any) -> tuple[int, ...]:
    name = type(model).__name__
    side = SIDE if not name.startswith("Sam") else int(model.config.vision_config.image_size)
    channels = getattr(model.config, "num_channels", 3) or 3
    if any(part in name for part in ("Video", "VJEPA", "Timesformer", "Vivit")):
        frames: Any = getattr(model.config, "num_frames", None) or getattr(model.config, "frames_per_clip", 4)
        return (2, frames, channels, side, side)
    return (2, channels, side, side)


def _features(model: Any, g: torch.Generator) -> dict[str, Tensor]:
    config = model.config
    bins: Any = getattr(config, "num_mel_bins", None) or getattr(config, "feature_projection_input_dim", 80)
    if type(model).__name__.startswith("Whisper"):
        return {"input_features": torch.randn(2, bins, 2 * config.max_source_positions, generator=g)}
    if not hasattr(config, "num_mel_bins") and not hasattr(config, "feature_projection_input_dim"):
        encoder = getattr(config, "encoder_config", config)
        bins = getattr(encoder, "num_mel_bins", getattr(encoder, "input_dim", 80))
    if hasattr(config, "input_feat_per_channel"):
        bins = config.input_feat_per_channel
    return {
        "input_features": torch.randn(2, FRAMES, bins, generator=g),
        "attention_mask": _mask(FRAMES, FRAMES * 2 // 3),
    }


def _texts(config: Any, g: torch.Generator) -> dict[str, Tensor]:
    text = getattr(config, "text_config", None) or config
    most = min(getattr(text, "vocab_size", 64) or 64, 64)
    ids = torch.randint(7, most, (2, max(TEXTS)), generator=g)
    mask = _mask(*TEXTS)
    ids[:, 0] = 3
    ids[torch.arange(2), torch.tensor(TEXTS) - 1] = getattr(text, "eos_token_id", None) or 2
    return {"input_ids": ids.masked_fill(mask == 0, getattr(text, "pad_token_id", None) or 0), "attention_mask": mask}


def _mask(whole: int, short: int) -> Tensor:
    return (torch.arange(whole) < torch.tensor([[whole], [short]])).long()


def _parameters(model: nn.Module) -> set[str]:
    return set(inspect.signature(model.forward).parameters)
