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


def talking_subject() -> Subject:
    """One whose processor knows the texts of its prompts."""
    made = fake_subject()
    made.processor = TalkingProcessor()
    return made


def noise(count: int) -> list[Sample]:
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)) for _ in range(count)]
    return [Sample(p, "what ?", name=f"image {i}") for i, p in enumerate(pictures)]


class FakeTokenizer:
    """A token for each letter, in the range of plain words of the tiny models."""

    padding_side = "left"
    pad_token = "<pad>"
    eos_token = "</s>"

    def __len__(self):
        return 64

    def batch_decode(self, rows):
        return [chr(64 + row[0]) for row in rows]

    def __call__(self, text, add_special_tokens=True, return_tensors=None):
        rows = [[6 + ord(c) % 58 for c in one] for one in ([text] if isinstance(text, str) else text)]
        if return_tensors:
            return {"input_ids": torch.tensor(rows)}
        return {"input_ids": rows[0] if isinstance(text, str) else rows}


class TalkingProcessor(FakeProcessor):
    """As the fake one, with a tokenizer, and prompts of any number of images."""

    def __init__(self):
        self.tokenizer = FakeTokenizer()

    def __call__(self, text, padding, return_tensors, images=()):
        pictures = [p for row in images for p in (row if isinstance(row, list) else [row])]
        one = prompt((len(pictures) // len(text),), seed=len(text[0]))
        made = {k: v.repeat(len(text), 1) for k, v in one.items() if k != "pixel_values"}
        if pictures:
            arrays = [np.asarray(p.resize((32, 32)), dtype=np.float32) / 255 for p in pictures]
            made["pixel_values"] = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
        return Inputs(made)
