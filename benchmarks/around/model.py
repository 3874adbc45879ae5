"""The model: a CLIP-like tower and a projector in front of SmolLM2, whose weights and tokenizer are left as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

from tokensieve.testbed import real

IMAGE = "<empty_output>"
"""A mark that SmolLM2's vocabulary has and no prompt here needs: it stands for a visual token."""
SIDE, PATCH = 256, 16
VISUAL = (SIDE // PATCH) ** 2
TOWERS = {
    "small": {"hidden_size": 192, "num_hidden_layers": 8, "num_attention_heads": 6, "intermediate_size": 768},
    "micro": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
}


@dataclass(frozen=True)
class Around:
    """The model, the tokenizer, and what tower and captions are compared in.

    Attributes:
        shared: projections of pictures and captions into one space, with the logarithm of a scale; training only.
    """

    model: Any
    tokenizer: Any
    shared: nn.ModuleDict

    @property
    def trained(self) -> dict[str, nn.Module]:
        """What is trained of the model, and what is shipped of it."""
        return {"tower": self.model.model.vision_tower, "projector": self.model.model.multi_modal_projector}


class Scale(nn.Module):
    """A factor on cosines, learned as its logarithm."""

    def __init__(self) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.tensor(2.66))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.log.clamp(max=4.6).exp()


def build(size: str = "small", seed: int = 0, language: tuple[Any, Any] | None = None) -> Around:
    """An untrained tower and projector around a language model.

    Args:
        language: a causal language model of the Llama family and its tokenizer; SmolLM2 by default.
    """
    inner, tokenizer = language or real.load("smollm2")
    torch.manual_seed(seed)
    width = TOWERS[size]["hidden_size"]
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**TOWERS[size], image_size=SIDE, patch_size=PATCH, projection_dim=width),
        text_config=inner.config, image_token_index=tokenizer.convert_tokens_to_ids(IMAGE), vision_feature_layer=-2,
        vision_feature_select_strategy="default", tie_word_embeddings=inner.config.tie_word_embeddings,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    model.model.language_model.load_state_dict(inner.model.state_dict())
    model.lm_head.load_state_dict(inner.lm_head.state_dict())
    model.model.language_model.requires_grad_(False)
    model.lm_head.requires_grad_(False)
    wide = inner.config.hidden_size
    shared = nn.ModuleDict({"picture": nn.Linear(width, width), "caption": nn.Linear(wide, width), "scale": Scale()})
    return Around(model, tokenizer, shared)


def prompt(question: str) -> str:
    """A question about a picture, in SmolLM2's chat template, up to where the answer begins."""
    return f"<|im_start|>user\n{IMAGE * VISUAL}\n{question}<|im_end|>\n<|im_start|>assistant\n"
