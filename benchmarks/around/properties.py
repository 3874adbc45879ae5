"""What a testbed has to have in common with real models, fixed before any method is measured, and what this one has of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import tokensieve as ts
from benchmarks.around.model import PATCH, SIDE, Around, prompt
from benchmarks.around.scenes import foreground, picture
from tokensieve.sites.model.structure import find
from tokensieve.testbed.data import Item
from tokensieve.testbed.stages import pixels

GOALS = {
    "layers of the language model": "at least 12",
    "visual attention of the last token, layers from 3 on over layers 1 and 2": "at most 0.5",
    "CLS attention on foreground patches over their area": "at least 3",
    "background patches above 3 times the median norm": "1% to 5%",
}
KIND, LEFT_OUT = 0.95, 0.8
"""Accuracy with all tokens that is the goal of a kind of question, and below which it is left out of tables."""


@dataclass(frozen=True)
class Property:
    """A property, what was asked of it, what was measured, and whether that is enough."""

    name: str
    goal: str
    value: float
    holds: bool


def inputs(around: Around, items: Sequence[Item], scenes: Sequence[Any]) -> dict[str, torch.Tensor]:
    """A batch of questions, padded on the left."""
    tokenizer = around.tokenizer
    tokenizer.padding_side, tokenizer.pad_token = "left", "<|im_end|>"
    given = tokenizer(
        [prompt(i.question.text) for i in items], padding=True, return_tensors="pt", add_special_tokens=False
    )
    images = torch.from_numpy(np.stack([picture(s) for s in scenes]))
    device = around.model.device
    return {
        "input_ids": given["input_ids"].to(device), "attention_mask": given["attention_mask"].to(device),
        "pixel_values": pixels(images.to(device)),
    }  # fmt: skip


@torch.no_grad()
def properties(around: Around, items: Sequence[Item], scenes: Sequence[Any]) -> list[Property]:
    """What was measured on some questions."""
    model = around.model.eval()
    given, depth = inputs(around, items, scenes), len(find(model).language.layers)  # type: ignore[union-attr]
    probes = ts.Plan([ts.stage("fastv", 1.0, layers=i) for i in range(1, depth)])
    with ts.sieve(model, probes, scores=True) as s:
        model(**given)
    shares = [float(t.score.sum(1).mean()) for t in s.last.stages]  # what layer i - 1 gave to the picture
    first, later = np.mean(shares[:2]), np.mean(shares[2:])
    with ts.sieve(model, "fastervlm", keep=1.0, scores=True) as s:
        model(**given)
    cls = s.last.stages[0].score.float().cpu().numpy()
    things = np.stack([foreground(x, SIDE // PATCH).ravel() for x in scenes])
    on_things = (cls * things).sum(1) / cls.sum(1) / things.mean(1)
    norms = (
        model.model.vision_tower(given["pixel_values"], output_hidden_states=True).hidden_states[-2][:, 1:].norm(dim=-1)
    )
    high = (norms > 3 * norms.median(1, keepdim=True).values).cpu().numpy()
    far = float((high & ~things).sum() / (~things).sum())
    values = (float(depth), float(later / first), float(on_things.mean()), far)
    holds = (depth >= 12, later <= 0.5 * first, on_things.mean() >= 3, 0.01 <= far <= 0.05)
    return [Property(n, g, v, bool(h)) for (n, g), v, h in zip(GOALS.items(), values, holds, strict=True)]


@torch.no_grad()
def right(around: Around, items: Sequence[Item], scenes: Sequence[Any], batch: int = 20) -> dict[str, float]:
    """Accuracy by kind of question, with all tokens."""
    found: dict[str, list[bool]] = {}
    model = around.model.eval()
    end = around.tokenizer.convert_tokens_to_ids("<|im_end|>")
    for start in range(0, len(items), batch):
        some, seen = items[start : start + batch], scenes[start : start + batch]
        given = inputs(around, some, seen)
        out = model.generate(**given, max_new_tokens=8, do_sample=False, eos_token_id=end, pad_token_id=end)
        said = around.tokenizer.batch_decode(out[:, given["input_ids"].shape[1] :], skip_special_tokens=True)
        for item, text in zip(some, said, strict=True):
            found.setdefault(item.kind, []).append(" ".join(text.lower().split()) == item.answer)
    return {kind: sum(ok) / len(ok) for kind, ok in found.items()}
