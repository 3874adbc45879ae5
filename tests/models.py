"""Small random models of real architectures."""

import pytest
import torch
import transformers
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, cache_utils

IMAGE = 5
SIDE = 8  # patches per side

eight_bits = pytest.mark.skipif(
    not hasattr(cache_utils, "Fp8QuantizedLayer"), reason="this release of transformers has no cache in 8 bits"
)


def llava(attn: str = "sdpa", layers: int = 4, kv_heads: int = 2, seed: int = 0) -> LlavaForConditionalGeneration:
    """64 visual tokens, 4 language-model layers."""
    torch.manual_seed(seed)
    vision = CLIPVisionConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=SIDE * 4,
        patch_size=4,
    )
    text = LlamaConfig(
        hidden_size=48, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=kv_heads, intermediate_size=96,
        vocab_size=64, max_position_embeddings=2048, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE)
    model = LlavaForConditionalGeneration(config).eval()
    return _sharp(model, attn)


def _sharp(model, attn):
    """Random initialisation alone gives near-uniform attention; sharper, masks and positions matter."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "q_proj" in name or "k_proj" in name:
                p.mul_(8)
    model.set_attn_implementation(attn)
    model.generation_config.eos_token_id = None
    return model


def prompt(images=(1,), before=3, after=6, seed=0):
    """A left-padded batch: row i holds images[i] images of SIDE*SIDE tokens. Returns model inputs."""
    g = torch.Generator().manual_seed(seed)
    rows = []
    for i, n in enumerate(images):
        ids = [torch.randint(6, 64, (before + i,), generator=g)]
        for _ in range(n):
            ids += [torch.full((SIDE * SIDE,), IMAGE), torch.randint(6, 64, (2,), generator=g)]
        ids.append(torch.randint(6, 64, (after,), generator=g))
        rows.append(torch.cat(ids))
    length = max(map(len, rows))
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, length - len(row) :] = row
        mask[i, length - len(row) :] = 1
    pixels = torch.randn(sum(images), 3, SIDE * 4, SIDE * 4, generator=g) if sum(images) else None
    out = {"input_ids": ids, "attention_mask": mask}
    return out | ({"pixel_values": pixels} if pixels is not None else {})


def decoder(attn: str = "sdpa", layers: int = 3, kv_heads: int = 2, seed: int = 0, family: str = "Llama", **options):
    """A causal language model whose attention is far from uniform."""
    torch.manual_seed(seed)
    config = getattr(transformers, f"{family}Config")(
        **{
            "hidden_size": 64, "num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": kv_heads,
            "head_dim": 16, "intermediate_size": 96, "vocab_size": 64, "max_position_embeddings": 256, "pad_token_id": 0,
            "bos_token_id": 1, "eos_token_id": 2, **options,
        }
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    return _sharp(model, attn)


def text(*lengths: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """A left-padded batch of random prompts."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, n in enumerate(lengths):
        ids[i, -n:] = torch.randint(3, 64, (n,), generator=g)
        mask[i, -n:] = 1
    return {"input_ids": ids, "attention_mask": mask}
