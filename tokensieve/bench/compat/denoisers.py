"""Tiny random denoisers: the classes of diffusers that are tried, and how each is built and called."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokensieve.bench.compat.denoiser_inputs import (
    BASIC,
    COG,
    FRAMES,
    HEADS,
    ROWS,
    SIDE,
    SMALL,
    TEXT,
    TOKENS,
    WIDTH,
    Call,
    angles_2d,
    angles_allegro,
    angles_audio,
    angles_lumina,
    clip,
    flux,
    hunyuan,
    mask,
    noise,
    picture,
    places,
    pooled,
    read,
    row,
    sizes,
    time,
    together,
    unet,
    wan,
)  # fmt: skip
from tokensieve.extras import Lazy

diffusers: Any = Lazy("diffusers", "diffusion")


@dataclass(frozen=True)
class Tiny:
    """How one class is built small and called.

    Attributes:
        options: of its constructor; call: its arguments for two rows.
        unrowed: arguments that both rows share.
    """

    options: Call
    call: Callable[[], Call]
    unrowed: tuple[str, ...] = ("img_ids", "txt_ids")

    def alone(self, given: Call, i: int) -> Call:
        """The arguments of one row."""
        return {k: _one(v, i) if k not in self.unrowed else v for k, v in given.items()}


def _one(value: Any, i: int) -> Any:
    if isinstance(value, Tensor):
        return value[i : i + 1] if value.dim() and len(value) == ROWS else value
    if isinstance(value, list):
        return value[i : i + 1] if len(value) == ROWS else [_one(v, i) for v in value]
    return value


def build(name: str) -> nn.Module:
    """A class of diffusers with random weights, every parameter of it: those that begin at zero would hide what is wrong."""
    kind = getattr(diffusers, name.split()[0])
    known = inspect.signature(kind.__init__).parameters
    torch.manual_seed(0)
    made: nn.Module = kind(**{k: v for k, v in TINY[name].options.items() if k in known}).eval()
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in made.parameters():
            if p.is_floating_point() and not bool(p.any()):
                p.copy_(0.1 * torch.randn(p.shape, generator=g))
    return made


TINY: dict[str, Tiny] = {
    "AuraFlowTransformer2DModel": Tiny(
        {**HEADS, "in_channels": 4, "sample_size": 16, "num_mmdit_layers": 1, "num_single_dit_layers": 2,
         "joint_attention_dim": WIDTH, "caption_projection_dim": 32, "pos_embed_max_size": 64},
        lambda: {**picture(), **read()},
    ),
    "DiTTransformer2DModel": Tiny(
        {**HEADS, **SMALL, "num_embeds_ada_norm": 10}, lambda: {**picture(), "class_labels": torch.tensor([1, 2])}
    ),
    "PixArtTransformer2DModel": Tiny(
        {**BASIC, "out_channels": 8, "use_additional_conditions": False},
        lambda: {**picture(), **read(), "added_cond_kwargs": {"resolution": None, "aspect_ratio": None}},
    ),
    "Transformer2DModel": Tiny(
        {**HEADS, "in_channels": 32, "num_layers": 2, "cross_attention_dim": WIDTH, "norm_num_groups": 8},
        lambda: {"hidden_states": noise(32, SIDE, SIDE), **read()},
    ),
    "SD3Transformer2DModel": Tiny(
        {**HEADS, **SMALL, "joint_attention_dim": WIDTH, "caption_projection_dim": 32, "pooled_projection_dim": WIDTH,
         "pos_embed_max_size": 16, "dual_attention_layers": (0,)},
        lambda: {**picture(), **read(), **pooled()},
    ),
    "FluxTransformer2DModel": Tiny(flux(), lambda: {**row(), **read(), **pooled(), **places()}),
    "Flux2Transformer2DModel": Tiny(
        flux(axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False), lambda: {**row(), **read(), **places(4)}
    ),
    "ChromaTransformer2DModel": Tiny(
        flux(approximator_num_channels=16, approximator_hidden_dim=32, approximator_layers=1),
        lambda: {**row(), **read(), **places()},
    ),
    "BriaTransformer2DModel": Tiny(flux(axes_dims_rope=[4, 6, 6]), lambda: {**row(), **read(), **places()}),
    "BriaFiboTransformer2DModel": Tiny(
        flux(axes_dims_rope=[4, 6, 6], text_encoder_dim=16),
        lambda: {**row(), **read(), **places(), "text_encoder_layers": [noise(TEXT, 16, seed=i) for i in range(4)]},
    ),
    "OvisImageTransformer2DModel": Tiny(flux(out_channels=4), lambda: {**row(), **read(), **places()}),
    "LongCatImageTransformer2DModel": Tiny(flux(axes_dims_rope=[4, 6, 6]), lambda: {**row(), **read(), **places()}),
    "QwenImageTransformer2DModel": Tiny(
        {**HEADS, "patch_size": 2, "in_channels": 4, "out_channels": 1, "num_layers": 3, "joint_attention_dim": WIDTH,
         "axes_dims_rope": (4, 6, 6)},
        lambda: {**row(), **read(), **mask("encoder_hidden_states_mask"), "img_shapes": [[(1, SIDE, SIDE)]] * ROWS},
    ),
    "NucleusMoEImageTransformer2DModel": Tiny(
        {**HEADS, "patch_size": 2, "in_channels": 4, "out_channels": 1, "num_layers": 3, "joint_attention_dim": WIDTH,
         "axes_dims_rope": (4, 6, 6), "moe_enabled": False, "capacity_factors": [8.0] * 3},
        lambda: {**row(), **read(), **mask("encoder_hidden_states_mask"), "img_shapes": [[(1, SIDE, SIDE)]] * ROWS},
    ),
    "Krea2Transformer2DModel": Tiny(
        {**HEADS, "in_channels": 4, "num_layers": 3, "num_key_value_heads": 2, "intermediate_size": 64,
         "timestep_embed_dim": 32, "text_hidden_dim": WIDTH, "num_text_layers": 2, "text_num_attention_heads": 2,
         "text_num_key_value_heads": 2, "text_intermediate_size": 64, "num_layerwise_text_blocks": 1,
         "num_refiner_text_blocks": 1, "axes_dims_rope": (4, 6, 6)},
        lambda: {**row(), "encoder_hidden_states": noise(TEXT, 2, WIDTH, seed=7), "position_ids": together()},
        unrowed=("position_ids",),
    ),
    "SanaTransformer2DModel": Tiny(
        {**BASIC, "patch_size": 1, "num_cross_attention_heads": 2, "cross_attention_head_dim": 16},
        lambda: {**picture(side=SIDE), **read()},
    ),
    "HunyuanDiT2DModel": Tiny(
        {**HEADS, **SMALL, "num_layers": 4, "hidden_size": 32, "cross_attention_dim": WIDTH, "cross_attention_dim_t5": WIDTH,
         "pooled_projection_dim": WIDTH, "text_len": TEXT, "text_len_t5": TEXT, "use_style_cond_and_image_meta_size": False},
        lambda: {**picture(), "timestep": time().float(), **read(), **mask("text_embedding_mask"),
                 **read(name="encoder_hidden_states_t5"),
                 **mask("text_embedding_mask_t5"), "image_rotary_emb": angles_2d()},
        unrowed=("image_rotary_emb",),
    ),
    "Lumina2Transformer2DModel": Tiny(
        {"in_channels": 4, "hidden_size": 32, "num_layers": 2, "num_refiner_layers": 1, "num_attention_heads": 2,
         "num_kv_heads": 2, "multiple_of": 16, "axes_dim_rope": (4, 6, 6), "axes_lens": (64, 64, 64), "cap_feat_dim": WIDTH,
         "sample_size": 16},
        lambda: {**picture(), **read(), **mask()},
    ),
    "LuminaNextDiT2DModel": Tiny(
        {"in_channels": 4, "hidden_size": 32, "num_layers": 3, "num_attention_heads": 2, "num_kv_heads": 2,
         "multiple_of": 16, "cross_attention_dim": WIDTH, "sample_size": 16},
        lambda: {**picture(), **read(), **mask("encoder_mask"), "image_rotary_emb": angles_lumina()},
        unrowed=("image_rotary_emb",),
    ),
    "ZImageTransformer2DModel": Tiny(
        {"in_channels": 4, "dim": 32, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2,
         "cap_feat_dim": WIDTH, "axes_dims": [4, 6, 6], "axes_lens": [128, 64, 64]},
        lambda: {"x": list(noise(4, 1, 16, 16)), "t": time() / 1000, "cap_feats": list(noise(TEXT, WIDTH, seed=7))},
    ),
    "PRXTransformer2DModel": Tiny(
        {"in_channels": 4, "patch_size": 2, "context_in_dim": WIDTH, "hidden_size": 32, "num_heads": 2, "depth": 3,
         "axes_dim": [8, 8]},
        lambda: {**picture(), **read()},
    ),
    "ErnieImageTransformer2DModel": Tiny(
        {"hidden_size": 32, "num_attention_heads": 2, "num_layers": 3, "ffn_hidden_size": 64, "in_channels": 4,
         "out_channels": 4, "text_in_dim": WIDTH, "rope_axes_dim": (4, 6, 6)},
        lambda: {**picture(side=SIDE), **read(name="text_bth"), "text_lens": torch.full((ROWS,), TEXT)},
    ),
    "CogView3PlusTransformer2DModel": Tiny(
        {**COG, "condition_dim": 8, "pos_embed_max_size": 16}, lambda: {**picture(), **read(), **sizes()}
    ),
    "CogView4Transformer2DModel": Tiny(
        {**COG, "condition_dim": 8, "pos_embed_max_size": 16, "rope_axes_dim": (16, 16)},
        lambda: {**picture(), **read(), **sizes()},
    ),
    "GlmImageTransformer2DModel": Tiny(
        {**COG, "condition_dim": 8, "prior_vq_quantizer_codebook_size": 16},
        lambda: {**picture(), **read(), **sizes(("target_size", "crop_coords")),
                 "prior_token_id": torch.ones(ROWS, TOKENS, dtype=torch.long),
                 "prior_token_drop": torch.zeros(ROWS, TOKENS, dtype=torch.bool)},
    ),
    "HiDreamImageTransformer2DModel": Tiny(
        {**HEADS, "patch_size": 2, "in_channels": 4, "num_layers": 2, "num_single_layers": 2, "caption_channels": [WIDTH, WIDTH],
         "text_emb_dim": WIDTH, "axes_dims_rope": (4, 6, 6), "max_resolution": (16, 16), "llama_layers": [0, 1, 1, 1],
         "num_routed_experts": 2, "num_activated_experts": 1, "force_inference_output": True},
        lambda: {"hidden_states": noise(4, 16, 16), "timesteps": time(), **read(name="encoder_hidden_states_t5"),
                 "encoder_hidden_states_llama3": [noise(TEXT, WIDTH, seed=i) for i in range(3)],
                 **pooled(name="pooled_embeds")},
    ),
    "CogVideoXTransformer3DModel": Tiny(
        {**COG, "sample_width": SIDE, "sample_height": SIDE, "sample_frames": 13, "max_text_seq_length": TEXT},
        lambda: {"hidden_states": noise(FRAMES, 4, SIDE, SIDE), "timestep": time(), **read()},
    ),
    "ConsisIDTransformer3DModel": Tiny(
        {**COG, "sample_width": SIDE, "sample_height": SIDE, "sample_frames": 13, "max_text_seq_length": TEXT},
        lambda: {"hidden_states": noise(FRAMES, 4, SIDE, SIDE), "timestep": time(), **read()},
    ),
    "LatteTransformer3DModel": Tiny(
        {**BASIC, "num_layers": 2, "video_length": FRAMES, "norm_type": "ada_norm_single", "num_embeds_ada_norm": 1000},
        lambda: {"hidden_states": noise(4, FRAMES, 16, 16), "timestep": time(), **read()},
    ),
    "AllegroTransformer3DModel": Tiny(
        {**HEADS, **SMALL, "cross_attention_dim": 32, "caption_channels": WIDTH, "sample_height": SIDE, "sample_width": SIDE,
         "sample_frames": FRAMES},
        lambda: {**clip(), **read(), "image_rotary_emb": angles_allegro()},
        unrowed=("image_rotary_emb",),
    ),
    "WanTransformer3DModel": Tiny(wan(), lambda: {**clip(), **read()}),
    "SkyReelsV2Transformer3DModel": Tiny(wan(), lambda: {**clip(), **read()}),
    "ChronoEditTransformer3DModel": Tiny(wan(), lambda: {**clip(), **read()}),
    "WanVACETransformer3DModel": Tiny(
        wan(vace_layers=[0, 2], vace_in_channels=4),
        lambda: {**clip(), **read(), "control_hidden_states": noise(4, FRAMES, SIDE, SIDE, seed=5)},
    ),
    "HeliosTransformer3DModel": Tiny(wan(rope_dim=(4, 6, 6), has_multi_term_memory_patch=False), lambda: {**clip(), **read()}),
    "MochiTransformer3DModel": Tiny(
        {**HEADS, "patch_size": 2, "num_layers": 3, "pooled_projection_dim": 32, "in_channels": 4, "text_embed_dim": WIDTH,
         "time_embed_dim": 4},
        lambda: {**clip(), **read(), **mask()},
    ),
    "HunyuanVideoTransformer3DModel": Tiny(hunyuan(), lambda: {**clip(), **read(), **mask(), **pooled()}),
    "HunyuanImageTransformer2DModel": Tiny(
        hunyuan(patch_size=(2, 2), rope_axes_dim=(8, 8)),
        lambda: {**picture(), "timestep": time().float(), **read(), **mask()},
    ),
    "LTXVideoTransformer3DModel": Tiny(
        {**HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 3, "cross_attention_dim": 32, "caption_channels": WIDTH},
        lambda: {**row(), **read(), **mask(), "num_frames": FRAMES, "height": 4, "width": 4},
    ),
    "CosmosTransformer3DModel": Tiny(
        {**HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 3, "text_embed_dim": WIDTH, "adaln_lora_dim": 8,
         "max_size": (8, 16, 16), "concat_padding_mask": False},
        lambda: {**clip(), **read()},
    ),
    "EasyAnimateTransformer3DModel": Tiny(
        {**COG, "num_layers": 3, "mmdit_layers": 2, "sample_width": SIDE, "sample_height": SIDE}, lambda: {**clip(), **read()}
    ),
    "SanaVideoTransformer3DModel": Tiny(
        {**BASIC, "patch_size": (1, 2, 2), "num_cross_attention_heads": 2, "cross_attention_head_dim": 16,
         "rope_max_seq_len": 32},
        lambda: {**clip(), **read()},
    ),
    "AnyFlowTransformer3DModel": Tiny(
        wan(), lambda: {"hidden_states": noise(FRAMES, 4, SIDE, SIDE), "timestep": time()[:, None].expand(-1, FRAMES),
                         "r_timestep": time()[:, None].expand(-1, FRAMES) // 2, **read()},
    ),
    "JoyImageEditTransformer3DModel": Tiny(
        {"in_channels": 4, "hidden_size": 32, "num_attention_heads": 2, "text_dim": WIDTH, "num_layers": 3,
         "rope_dim_list": [4, 6, 6]},
        lambda: {**clip(), **read()},
    ),
    "UNet2DConditionModel": Tiny(unet(), lambda: {"sample": noise(4, SIDE, SIDE), "timestep": time(), **read()}),
    "UNet2DConditionModel (SDXL)": Tiny(
        unet(addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=80,
              transformer_layers_per_block=(1, 2), use_linear_projection=True),
        lambda: {"sample": noise(4, SIDE, SIDE), "timestep": time(), **read(),
                 "added_cond_kwargs": {"text_embeds": torch.ones(1, 32), "time_ids": torch.ones(1, 6)}},
    ),
    "UNet3DConditionModel": Tiny(
        unet(down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"), up_block_types=("UpBlock3D", "CrossAttnUpBlock3D")),
        lambda: {"sample": noise(4, FRAMES, SIDE, SIDE), "timestep": time(), **read()},
    ),
    "UNetMotionModel": Tiny(
        unet(down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
              up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"), motion_num_attention_heads=2, num_attention_heads=2),
        lambda: {"sample": noise(4, FRAMES, SIDE, SIDE), "timestep": time(), **read()},
    ),
    "UNet2DModel": Tiny(
        {"sample_size": SIDE, "in_channels": 4, "out_channels": 4, "layers_per_block": 1, "block_out_channels": (32, 64),
         "down_block_types": ("AttnDownBlock2D",) * 2, "up_block_types": ("AttnUpBlock2D",) * 2, "norm_num_groups": 8},
        lambda: {"sample": noise(4, SIDE, SIDE), "timestep": time()},
    ),
    "PriorTransformer": Tiny(
        {**HEADS, "num_layers": 2, "embedding_dim": 32, "num_embeddings": TEXT, "additional_embeddings": 4},
        lambda: {"hidden_states": noise(32), "timestep": time(), "proj_embedding": noise(32, seed=3), **read()},
    ),
    "StableAudioDiTModel": Tiny(
        {**HEADS, "sample_size": TOKENS, "in_channels": 4, "out_channels": 4, "num_layers": 2, "num_key_value_attention_heads": 2,
         "cross_attention_dim": 32, "time_proj_dim": 16, "global_states_input_dim": 32, "cross_attention_input_dim": WIDTH},
        lambda: {"hidden_states": noise(4, TOKENS), "timestep": time().float(), **read(), "global_hidden_states": noise(1, 32),
                 "rotary_embedding": angles_audio()},
        unrowed=("rotary_embedding",),
    ),
}  # fmt: skip
