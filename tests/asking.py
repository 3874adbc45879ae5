"""A model to ask in place of a real one: a processor without a tokenizer, and pictures of noise."""

import numpy as np
import torch
from PIL import Image

from tests.models import llava, prompt
from tokensieve.bench.data import Sample
from tokensieve.bench.subject import Subject


class FakeProcessor:
    """Questions are words of digits; answers are token ids as text."""

    chat_template = None
    image_token = "<image>"

    class tokenizer:
        padding_side = "left"

    def __call__(self, images, text, padding, return_tensors):
        one = prompt((1,), seed=len(text[0]))
        pixels = torch.stack(
            [torch.from_numpy(np.asarray(i.resize((32, 32)), dtype=np.float32)).permute(2, 0, 1) / 255 for i in images]
        )
        made = {
            "input_ids": one["input_ids"].repeat(len(images), 1),
            "attention_mask": one["attention_mask"].repeat(len(images), 1),
            "pixel_values": pixels,
        }
        return Inputs(made)

    def batch_decode(self, ids, skip_special_tokens):
        return [" ".join(map(str, row.tolist())) for row in ids]


class Inputs(dict):
    def to(self, *_):
        return self


def fake_subject() -> Subject:
    model = llava()
    return Subject("fake", model, FakeProcessor())


def noise(count: int) -> list[Sample]:
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)) for _ in range(count)]
    return [Sample(p, "what ?", name=f"image {i}") for i, p in enumerate(pictures)]
