"""The check of models that attend to images by cross-attention, on one that is trained here in half a minute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import MllamaConfig, MllamaForConditionalGeneration
from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig

import tokensieve as ts
from benchmarks.descent import descend
from benchmarks.systems.bed import SEED, CheckContext, Outcome, beats, check
from tokensieve.methods.cross.trimmed_llama import TrimmedLlama
from tokensieve.sites.model.compatibility import cache_in

CROSS, SIZE, WIDTH = (1, 3, 5), 32, 64
DIGIT, ASKED, IMAGE = 3, 13, 17  # the first of ten answers, the first of four questions, the placeholder
STEPS, BATCH, RATE, TEST = 400, 48, 2e-3, 400


def build() -> Any:
    """An Mllama of six layers, three of them cross-attention, that sees one tile of 64 patches."""
    torch.manual_seed(SEED)
    text = MllamaTextConfig(
        vocab_size=IMAGE, hidden_size=WIDTH, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=4,
        intermediate_size=2 * WIDTH, cross_attention_layers=list(CROSS), pad_token_id=0, bos_token_id=1,
        eos_token_id=None, max_position_embeddings=64,
    )  # fmt: skip
    vision = MllamaVisionConfig(
        hidden_size=WIDTH, num_hidden_layers=1, num_global_layers=1, attention_heads=4, intermediate_size=2 * WIDTH,
        image_size=SIZE, patch_size=4, max_num_tiles=1, vision_output_dim=2 * WIDTH, intermediate_layers_indices=[0],
        supported_aspect_ratios=[[1, 1]],
    )  # fmt: skip
    config = MllamaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE, attn_implementation="sdpa")
    model: Any = MllamaForConditionalGeneration(config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "gate" in name and value.dim() < 2:
                value.fill_(1.0)  # they start closed, which a short training does not change
    return model


def scenes(split: str, count: int, draw: torch.Generator) -> tuple[dict[str, Tensor], Tensor]:
    """Model inputs and answers: two handwritten digits in two quarters of a picture, and the question what one quarter holds."""
    data = load_digits()
    pictures, labels = torch.tensor(data.images).float() / 16, torch.tensor(data.target)
    test = torch.arange(len(labels)) % 5 == 0
    pictures, labels = (x[test if split == "test" else ~test] for x in (pictures, labels))
    big = pictures.repeat_interleave(2, 1).repeat_interleave(2, 2)
    which = torch.randint(len(labels), (count, 2), generator=draw)
    quarter = torch.rand(count, 4, generator=draw).argsort(1)[:, :2]
    canvas = torch.zeros(count, 2, 16, 2, 16)
    for side in range(2):
        row, column = quarter[:, side] // 2, quarter[:, side] % 2
        canvas[torch.arange(count), row, :, column] = big[which[:, side]]
    pixels = canvas.reshape(count, 1, 1, 1, SIZE, SIZE).expand(-1, -1, -1, 3, -1, -1) * 2 - 0.5
    ids = torch.stack([torch.full((count,), 1), torch.full((count,), IMAGE), ASKED + quarter[:, 0]], 1)
    seen = torch.ones(count, 3, 1, 1, dtype=torch.long)
    seen[:, 0] = 0
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": pixels,
        "aspect_ratio_ids": torch.ones(count, 1, dtype=torch.long),
        "aspect_ratio_mask": torch.ones(count, 1, 1, dtype=torch.long),
        "cross_attention_mask": seen,
    }
    return inputs, DIGIT + labels[which[:, 0]]


def train() -> Any:
    model, draw = build(), torch.Generator().manual_seed(SEED)

    def loss(step: int) -> torch.Tensor:
        inputs, answers = scenes("train", BATCH, draw)
        return cross_entropy(model(**inputs).logits[:, -1], answers)

    descend(model.train().parameters(), loss, STEPS, RATE, clip=1.0)
    return model.eval()


@dataclass(frozen=True)
class RandomKeys(TrimmedLlama):
    """Equally many image keys, drawn."""

    def score(self, s: ts.Signals) -> Tensor:
        return s.noise()


@check(268)
@torch.no_grad()
def trimmed_llama(bed: CheckContext) -> Outcome:
    """A small Mllama trained here on two digits in a picture, half of the image keys: within 1 point of full and above random
    keys; image KV bytes in later cross-attention layers halve. Beside it the error of the logits."""
    with torch.enable_grad():
        model = train()
    inputs, answers = scenes("test", TEST, torch.Generator().manual_seed(SEED))
    full = model(**inputs)
    n: dict[str, Any] = {"full": _right(full.logits, answers)}
    for name, method in (("trimmed-llama", TrimmedLlama()), ("random", RandomKeys())):
        with ts.sieve(model, method, keep=0.5, seed=SEED):
            out = model(**inputs)
        error = (out.logits[:, -1] - full.logits[:, -1]).norm() / full.logits[:, -1].norm()
        n |= {name: _right(out.logits, answers), f"logit error: {name}": round(float(error), 4)}
        held = [cache_in(out).layers[i].keys.shape[2] / cache_in(full).layers[i].keys.shape[2] for i in CROSS]
        n["image KV bytes by cross layer"] = [round(share, 3) for share in held]
    halved = all(share <= 0.51 for share in n["image KV bytes by cross layer"][1:])
    return halved and n["full"] - n["trimmed-llama"] < 0.01 and beats(n, "trimmed-llama", ("random",)), n


def _right(logits: Tensor, answers: Tensor) -> float:
    return round(float((logits[:, -1].argmax(-1) == answers).float().mean()), 4)
