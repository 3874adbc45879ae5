"""What a testbed has to have in common with real models, fixed before any method is measured, and what this one has of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

import tokensieve as ts
from benchmarks.around import answer
from tokensieve.sites.model.structure import find
from tokensieve.testbed.around.model import Around, processor, prompt
from tokensieve.testbed.around.scenes import foreground, generate, picture
from tokensieve.testbed.questions import QUESTION_KINDS, questions
from tokensieve.testbed.scenes import Scene

GOALS = {
    "layers of the language model": "at least 12",
    "visual attention of the last token, layers from 3 on over layers 1 and 2": "at most 0.5",
    "CLS attention on foreground patches over their area": "at least 3",
    "background patches above 3 times the median norm": "1% to 5%",
}
KIND = 0.95
"""Accuracy with all tokens that is the goal of a kind of question."""


@dataclass(frozen=True)
class Property:
    """A property, what was asked of it, what was measured, and whether that is enough."""

    name: str
    goal: str
    value: float
    holds: bool


def inputs(around: Around, scenes: Sequence[Scene]) -> dict[str, torch.Tensor]:
    """A batch of the scenes' first questions, padded on the left."""
    texts = [prompt(questions(scene)[0].text) for scene in scenes]
    images = [picture(scene) for scene in scenes]
    given = processor(around.tokenizer)(images=images, text=texts, padding=True, return_tensors="pt")
    return dict(given.to(around.model.device))


@torch.no_grad()
def properties(around: Around, scenes: Sequence[Scene]) -> list[Property]:
    """What was measured on some scenes."""
    model = around.model.eval()
    given, depth = inputs(around, scenes), len(find(model).language.layers)  # type: ignore[union-attr]
    probes = ts.Plan([ts.stage("fastv", 1.0, layers=i) for i in range(1, depth)])
    with ts.sieve(model, probes, scores=True) as s:
        model(**given)
    shares = [float(t.score.sum(1).mean()) for t in s.last.stages]  # what layer i - 1 gave to the picture
    first, later = np.mean(shares[:2]), np.mean(shares[2:])
    with ts.sieve(model, "fastervlm", keep=1.0, scores=True) as s:
        model(**given)
    cls = s.last.stages[0].score.float().cpu().numpy()
    things = np.stack([foreground(x) for x in scenes])
    on_things = (cls * things).sum(1) / cls.sum(1) / things.mean(1)
    seen = model.model.vision_tower(given["pixel_values"], output_hidden_states=True).hidden_states[-2][:, 1:]
    norms = seen.norm(dim=-1)
    high = (norms > 3 * norms.median(1, keepdim=True).values).cpu().numpy()
    far = float((high & ~things).sum() / (~things).sum())
    values = (float(depth), float(later / first), float(on_things.mean()), far)
    holds = (depth >= 12, later <= 0.5 * first, on_things.mean() >= 3, 0.01 <= far <= 0.05)
    return [Property(n, g, v, bool(h)) for (n, g), v, h in zip(GOALS.items(), values, holds, strict=True)]


@torch.no_grad()
def right(around: Around, count: int, seed: int = 0, batch: int = 10) -> dict[str, float]:
    """Accuracy by kind with all tokens, as greedy decoding answers, on so many held-out questions of each kind."""
    found: dict[str, list[bool]] = {kind: [] for kind in QUESTION_KINDS}
    around.model.eval()
    index = 0
    while min(map(len, found.values())) < count:
        scenes = [generate(seed, index + i, "test") for i in range(batch)]
        index += batch
        images = torch.from_numpy(np.stack([np.asarray(picture(s)) for s in scenes])).to(around.model.device)
        first = answer.prefix(around, images)
        every = [questions(s) for s in scenes]
        packed = {k: v.to(first.device) for k, v in answer.pack(around, every, first.shape[1]).items()}
        flags = answer.read(around, first, packed)[1]
        for some, row in zip(every, flags, strict=True):
            for q, ok in zip(some, row, strict=True):
                found[q.kind].append(ok)
    return {kind: float(np.mean(ok[:count])) for kind, ok in found.items()}
