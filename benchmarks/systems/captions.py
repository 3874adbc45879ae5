"""Check of a dual encoder on generated scenes and what is said of them."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from benchmarks.reference.lotlip_338 import LoTLIP
from benchmarks.reference.text_encoder import Vocabulary, batch, tiny
from benchmarks.systems.bed import SEED, CheckContext, Outcome, check
from benchmarks.trained import mean
from tokensieve.retrieval.evaluation.evaluate import ranks
from tokensieve.retrieval.heads.contrast import fit
from tokensieve.testbed.scenes import generate

TRAIN, TEST, SIDE, OUT = 2000, 300, 48, 64


@cache
def scenes(split: str) -> tuple[Tensor, list[str], list[str]]:
    """Pictures ``(n, 3, SIDE, SIDE)`` from 0 to 1, what is said of one thing in each, and of all things."""
    pictures, short, long = [], [], []
    for index in range(TRAIN if split == "train" else TEST):
        scene = generate(SEED, index, split)
        said = [f"a {t.colour} {t.name} at the {t.place}" for t in scene.things]
        pictures.append(np.asarray(scene.image.convert("RGB").resize((SIDE, SIDE)), dtype=np.float32) / 255)
        short.append(said[index % len(said)])
        long.append(" . ".join(said))
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous(), short, long


class Eye(nn.Module):
    """Pictures to ``(n, OUT)`` of length 1."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((3, 16), (16, 32), (32, 64)):
            layers += [nn.Conv2d(before, after, 3, 2, 1), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * (SIDE // 8) ** 2, OUT))

    def forward(self, pictures: Tensor) -> Tensor:
        return normalize(self.layers(pictures), dim=1)


@check(338)
def lotlip(_: CheckContext) -> Outcome:
    """Generated scenes, captions of one thing and of all things, two seeds: R@1 of long captions above training by CLS
    alone on the same captions, that of short ones within one point."""
    pictures, short, long = scenes("train")
    words = Vocabulary(long, 256)
    said = [words.ids(part) for part in (short, long)]
    asked = [batch(words.ids(part), 80) for part in scenes("test")[1:]]
    n: dict[str, Any] = {}
    for name, corners in (("CLS alone", 0), ("corners", 2)):
        found: list[list[float]] = [[], []]
        for seed in (0, 1):
            torch.manual_seed(seed)
            model, eye = LoTLIP(tiny(len(words), 64), OUT, corners), Eye()

            def loss(index: Tensor, model: LoTLIP = model, eye: Eye = eye) -> Tensor:
                texts = [model(*batch([part[i] for i in index], 80)) for part in said]
                return model.loss(eye(pictures[index]), *texts)

            fit([model, eye], loss, TRAIN, steps=300, batch=64, rate=1e-3, seed=seed, what=f"{name} {seed}")
            with torch.no_grad():
                seen = eye(scenes("test")[0])
                for values, text in zip(found, asked, strict=True):
                    values.append(float((ranks((model(*text)[:, 0] @ seen.T).numpy(), range(TEST)) == 1).mean()))
        n[f"short, {name}"], n[f"long, {name}"] = mean(found[0]), mean(found[1])
    near = n["short, corners"] >= n["short, CLS alone"] - 0.01
    return n["long, corners"] > n["long, CLS alone"] and near, n
