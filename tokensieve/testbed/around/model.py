"""The model: a CLIP-like tower and a projector in front of SmolLM2, with adapters of low rank."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from tokensieve.testbed import real
from tokensieve.testbed.around.adapters import adapters, merge
from tokensieve.testbed.model import see_neighbours
from tokensieve.testbed.scenes import SIZE

IMAGE, END = "<empty_output>", "<|im_end|>"
"""A mark that SmolLM2's vocabulary has and no prompt here needs, for a visual token; and the end of what somebody says."""
PATCH = 28
SIDE = SIZE // PATCH
VISUAL = SIDE**2
BEFORE = "<|im_start|>user\n"
TOWERS = {
    "small": {"hidden_size": 192, "num_hidden_layers": 7, "num_attention_heads": 6, "intermediate_size": 768},
    "micro": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
}
RANK = 8
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}" + IMAGE + "\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Around:
    """The model, its tokenizer, and the adapters that are not part of it yet."""

    model: Any
    tokenizer: Any
    adapters: nn.ModuleDict

    @property
    def trained(self) -> dict[str, nn.Module]:
        """What is trained, and what is packaged."""
        body = self.model.model
        return {"tower": body.vision_tower, "projector": body.multi_modal_projector, "adapters": self.adapters}

    def words(self, texts: list[str]) -> torch.Tensor:
        """``(n, D)``: what the language model itself puts in for a word in the midst of a sentence, the mean of its tokens."""
        table, blank = self.model.get_input_embeddings().weight, self.tokenizer.encode(" ")
        ids = [[i for i in self.tokenizer.encode(f" {text}") if [i] != blank] for text in texts]
        return torch.stack([table[some].mean(0) for some in ids])


def build(size: str = "small", seed: int = 0, language: tuple[Any, Any] | None = None) -> Around:
    """An untrained tower, projector and adapters around a language model.

    Args:
        language: a causal language model of the Llama family and its tokenizer; SmolLM2 by default.
    """
    inner, tokenizer = language or real.load("smollm2")
    torch.manual_seed(seed)
    width, end = TOWERS[size]["hidden_size"], tokenizer.convert_tokens_to_ids(END)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**TOWERS[size], image_size=SIZE, patch_size=PATCH, projection_dim=width),
        text_config=inner.config, image_token_index=tokenizer.convert_tokens_to_ids(IMAGE), vision_feature_layer=-2,
        vision_feature_select_strategy="default", tie_word_embeddings=inner.config.tie_word_embeddings,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = end
    model.model.language_model.load_state_dict(inner.model.state_dict())
    model.lm_head.load_state_dict(inner.lm_head.state_dict())
    model.model.language_model.requires_grad_(False)
    model.lm_head.requires_grad_(False)
    see_neighbours(model.model.vision_tower)
    return Around(model, tokenizer, adapters(model.model.language_model, RANK))


def path() -> Path:
    """The directory of what is packaged: weights and card."""
    return Path(__file__).parent


def load(
    device: str = "cpu", dtype: torch.dtype = torch.float32, file: Path | None = None
) -> tuple[Any, LlavaProcessor]:
    """The model in evaluation mode, and its processor.

    Args:
        file: weights that `python -m benchmarks.around` wrote; the packaged ones by default.

    Raises:
        ImportError, OSError: as :func:`tokensieve.testbed.real.load`, from which SmolLM2 comes.
    """
    made = restored(file or path() / "around.safetensors")
    return made.model.to(device, dtype).eval(), processor(made.tokenizer)


def restored(file: Path, size: str = "small") -> Around:
    """What was trained, as it was written to a file, with the adapters merged."""
    made, weights = build(size), load_file(file)
    for name, module in made.trained.items():
        own = {k.removeprefix(f"{name}."): v.float() for k, v in weights.items() if k.startswith(f"{name}.")}
        module.load_state_dict(own)
    merge(made.model.model.language_model, made.adapters)
    return made


def processor(tokenizer: Any) -> LlavaProcessor:
    """The image processor, SmolLM2's tokenizer, and a chat template with the picture first."""
    tokenizer.pad_token, tokenizer.padding_side = END, "left"
    images = CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    return LlavaProcessor(
        images, tokenizer, patch_size=PATCH, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        image_token=IMAGE, chat_template=TEMPLATE,
    )  # fmt: skip


def prompt(question: str) -> str:
    """A question about one picture, as the processor expects it."""
    return f"{BEFORE}{IMAGE}{asked(question)}"


def asked(question: str) -> str:
    """A question behind a picture, up to where the answer begins."""
    return f"\n{question}{END}\n<|im_start|>assistant\n"
