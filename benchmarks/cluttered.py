"""Handwritten digits pasted on cluttered canvases, and a small ViT that reads them: trained on the spot, fixed seed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F
from transformers import ViTConfig, ViTForImageClassification

from benchmarks.descent import descend

SIDE, PATCH, SIZE = 64, 8, 28
"""Pixels of a canvas, of a patch, and of the digit."""
PIECES, PIECE = 10, 10
"""Pieces of other digits around it, and the pixels of one."""
TRAIN = 1200
SPREAD = 9.0
"""Pixels of standard deviation of the digit's place from the middle, where photographers have what matters, too."""
CONFIG = ViTConfig(
    hidden_size=64, num_hidden_layers=6, num_attention_heads=4, intermediate_size=128, image_size=SIDE, patch_size=PATCH,
    num_channels=1, num_labels=10, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)  # fmt: skip
STEPS, BATCH, RATE = 1000, 64, 2e-3


@dataclass(frozen=True)
class Canvases:
    """Pictures ``(n, 1, 64, 64)``, their labels ``(n,)``, and how much of each patch the digit's box covers, ``(n, 64)``."""

    images: Tensor
    labels: Tensor
    covered: Tensor


def canvases(count: int, seed: int, split: str = "train") -> Canvases:
    """A pure function of its arguments; the splits share no digit."""
    digits = load_digits()
    mine = slice(0, TRAIN) if split == "train" else slice(TRAIN, None)
    images = torch.tensor(digits.images[mine], dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(digits.target[mine])
    draw = torch.Generator().manual_seed(2 * seed + (split == "train"))
    large = F.interpolate(images, size=(SIZE, SIZE), mode="bilinear")
    pick = torch.randint(len(images), (count,), generator=draw)
    out, covered = torch.zeros(count, 1, SIDE, SIDE), torch.zeros(count, SIDE, SIDE)
    room = SIDE - SIZE
    at = (torch.randn(count, 2, generator=draw) * SPREAD + room / 2).round().long().clamp(0, room)
    for i in range(count):
        for _ in range(PIECES):
            other, y, x, v, u = (
                int(torch.randint(high, (1,), generator=draw))
                for high in (len(images), SIDE - PIECE, SIDE - PIECE, SIZE - PIECE, SIZE - PIECE)
            )
            piece = large[other, 0, v : v + PIECE, u : u + PIECE]
            out[i, 0, y : y + PIECE, x : x + PIECE] = piece
        y, x = at[i].tolist()
        out[i, 0, y : y + SIZE, x : x + SIZE] = large[pick[i], 0]
        covered[i, y : y + SIZE, x : x + SIZE] = 1
    out += 0.1 * torch.randn(out.shape, generator=draw)
    share = F.avg_pool2d(covered[:, None], PATCH).flatten(1)
    return Canvases(out * 2 - 1, labels[pick], share)


@torch.enable_grad()
def train(sieved: Callable[[Any], Any] | None = None, seed: int = 0, steps: int = STEPS) -> ViTForImageClassification:
    """64 patches and CLS, 6 layers.

    Args:
        sieved: from the model to a context in which it is trained, as of `tokensieve.sieve`.
    """
    torch.manual_seed(seed)
    model = ViTForImageClassification(CONFIG)
    data = canvases(6000, seed)

    def loss(step: int) -> Tensor:
        pick = torch.randint(len(data.images), (BATCH,))
        return F.cross_entropy(model(pixel_values=data.images[pick]).logits, data.labels[pick])

    with nullcontext() if sieved is None else sieved(model):
        descend(model.parameters(), loss, steps, RATE, decay=0.05)
    return model.eval()


@torch.no_grad()
def outputs(model: Any, data: Canvases) -> tuple[Tensor, Tensor]:
    """Logits ``(n, 10)``, and the class token's states behind the last block ``(n, 64)``, with whatever is attached."""
    made = [model(pixel_values=x, output_hidden_states=True) for x in data.images.split(100)]
    return torch.cat([m.logits for m in made]), torch.cat([m.hidden_states[-1][:, 0] for m in made])


def accuracy(model: Any, data: Canvases) -> float:
    """The share of right answers."""
    return round(float((outputs(model, data)[0].argmax(1) == data.labels).float().mean()), 4)
