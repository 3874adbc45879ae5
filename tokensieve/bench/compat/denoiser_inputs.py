"""What tiny denoisers are made of and called with: 64 tokens of pictures or clips, 6 of a text, in two rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ROWS, SIDE, FRAMES, TEXT, WIDTH = 2, 8, 4, 6, 32
TOKENS = SIDE * SIDE
HEADS = {"num_attention_heads": 2, "attention_head_dim": 16}
Call = dict[str, Any]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(ROWS, *shape, generator=torch.Generator().manual_seed(seed + len(shape)))


def time() -> Tensor:
    return torch.tensor([300, 700])


def picture(channels: int = 4, side: int = 2 * SIDE) -> Call:
    """Latents of a picture whose patches have a side of 2."""
    return {"hidden_states": noise(channels, side, side), "timestep": time()}


def clip(channels: int = 4) -> Call:
    """Latents of a clip whose patches have a side of 2: four frames of 4 x 4 tokens."""
    return {"hidden_states": noise(channels, FRAMES, SIDE, SIDE), "timestep": time()}


def row(channels: int = 4) -> Call:
    """Latents as a row of tokens."""
    return {"hidden_states": noise(TOKENS, channels), "timestep": time() / 1000}


def read(width: int = WIDTH, name: str = "encoder_hidden_states") -> Call:
    return {name: noise(TEXT, width, seed=7)}


def places(axes: int = 3) -> Call:
    """Where the tokens of a row stand."""
    at = torch.zeros(SIDE, SIDE, axes)
    first = 1 if axes > 2 else 0
    at[..., first] = torch.arange(SIDE)[:, None]
    at[..., first + 1] = torch.arange(SIDE)
    return {"img_ids": at.reshape(-1, axes), "txt_ids": torch.zeros(TEXT, axes)}


def mask(name: str = "encoder_attention_mask") -> Call:
    return {name: torch.ones(ROWS, TEXT, dtype=torch.bool)}


def pooled(width: int = WIDTH, name: str = "pooled_projections") -> Call:
    return {name: noise(width, seed=9)}


def sizes(names: tuple[str, ...] = ("original_size", "target_size", "crop_coords")) -> Call:
    return {name: torch.tensor([[16.0, 16.0]] * ROWS) for name in names}


def flux(**more: Any) -> Call:
    plain = {"patch_size": 1, "in_channels": 4, "num_layers": 2, "num_single_layers": 2, "joint_attention_dim": WIDTH}
    return {**HEADS, **plain, "pooled_projection_dim": WIDTH, "axes_dims_rope": (4, 6, 6), **more}


def wan(**more: Any) -> Call:
    plain = {"in_channels": 4, "out_channels": 4, "text_dim": WIDTH, "freq_dim": 32, "ffn_dim": 64, "num_layers": 3}
    return {**HEADS, **plain, "rope_max_seq_len": 32, **more}


def hunyuan(**more: Any) -> Call:
    plain = {"in_channels": 4, "out_channels": 4, "num_layers": 2, "num_single_layers": 2, "num_refiner_layers": 1}
    rope = {
        "rope_axes_dim": (4, 6, 6),
        "text_embed_dim": WIDTH,
        "pooled_projection_dim": WIDTH,
        "guidance_embeds": False,
    }
    return {**HEADS, **plain, **rope, **more}


def unet(**more: Any) -> Call:
    blocks = ("CrossAttnDownBlock2D",) * 2
    return {
        "sample_size": SIDE, "in_channels": 4, "out_channels": 4, "layers_per_block": 1, "block_out_channels": (32, 64),
        "down_block_types": blocks, "up_block_types": tuple(b.replace("Down", "Up") for b in blocks),
        "cross_attention_dim": WIDTH, "attention_head_dim": 4, "norm_num_groups": 8, **more,
    }  # fmt: skip


SMALL = {"in_channels": 4, "out_channels": 4, "num_layers": 3, "sample_size": 2 * SIDE, "patch_size": 2}
COG = {**HEADS, **SMALL, "text_embed_dim": WIDTH, "time_embed_dim": 32}
BASIC = {**HEADS, **SMALL, "cross_attention_dim": WIDTH, "caption_channels": WIDTH}


def together() -> Tensor:
    """Positions of a text and the tokens behind it, ``(6 + 64, 3)``."""
    given = places()
    return torch.cat([given["txt_ids"], given["img_ids"]])


def angles_2d() -> tuple[Tensor, Tensor]:
    from diffusers.models.embeddings import get_2d_rotary_pos_embed

    cos, sin = get_2d_rotary_pos_embed(16, ((0, 0), (SIDE, SIDE)), (SIDE, SIDE), output_type="pt")
    return cos, sin


def angles_lumina() -> Tensor:
    from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina

    made: Tensor = get_2d_rotary_pos_embed_lumina(16, 16, 16)
    return made


def angles_allegro() -> Any:
    from diffusers.models.embeddings import get_3d_rotary_pos_embed_allegro

    time_, rows, columns, *places_ = get_3d_rotary_pos_embed_allegro(
        24, ((0, 0), (4, 4)), (4, 4), temporal_size=FRAMES, interpolation_scale=(1.0, 1.0, 1.0)
    )
    return (time_, rows, columns), tuple(p.long() if isinstance(p, Tensor) else p for p in places_)


def angles_audio() -> Any:
    from diffusers.models.embeddings import get_1d_rotary_pos_embed

    return get_1d_rotary_pos_embed(8, TOKENS + 1, use_real=True, repeat_interleave_real=False)
