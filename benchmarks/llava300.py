"""A randomly initialised LLaVA of about 300 M parameters, and a prompt of 576 visual tokens; without any of tokensieve."""

from __future__ import annotations

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

TEXT, VISUAL, IMAGE, VOCAB = 32, 576, 9, 16000


def build() -> LlavaForConditionalGeneration:
    """CLIP-L geometry at half width in front of a Llama of 16 layers; SDPA throughout."""
    vision = CLIPVisionConfig(
        hidden_size=512,
        num_hidden_layers=12,
        num_attention_heads=8,
        intermediate_size=2048,
        image_size=336,
        patch_size=14,
    )
    text = LlamaConfig(
        hidden_size=1024, num_hidden_layers=16, num_attention_heads=16, num_key_value_heads=16, intermediate_size=2752,
        vocab_size=VOCAB, max_position_embeddings=2048,
    )  # fmt: skip
    torch.manual_seed(0)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE, attn_implementation="sdpa")
    return LlavaForConditionalGeneration(config).eval()


def inputs(device: str) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(10, VOCAB, (1, TEXT + VISUAL), generator=g)
    ids[:, 8 : 8 + VISUAL] = IMAGE
    pixels = torch.randn(1, 3, 336, 336, generator=g)
    return {
        "input_ids": ids.to(device),
        "attention_mask": torch.ones_like(ids).to(device),
        "pixel_values": pixels.to(device),
    }
