"""A small ViT on scikit-learn's handwritten digits, trained on the spot in about a minute: no download, fixed seed."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F
from transformers import ViTConfig, ViTForImageClassification

from benchmarks.descent import descend

TRAIN = 1200
SIDE = 32
CONFIG = ViTConfig(
    hidden_size=64, num_hidden_layers=6, num_attention_heads=4, intermediate_size=128, image_size=SIDE, patch_size=4,
    num_channels=1, num_labels=10, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)  # fmt: skip


def data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test images ``(n, 1, 32, 32)`` and labels; the first 1,200 train, the other 597 test."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
    images = F.interpolate(images, size=(SIDE, SIDE), mode="bilinear")
    labels = torch.tensor(digits.target)
    return images[:TRAIN], labels[:TRAIN], images[TRAIN:], labels[TRAIN:]


@torch.enable_grad()
def train(epochs: int = 30, seed: int = 0) -> ViTForImageClassification:
    """64 patch tokens and CLS, 6 layers; about 95% on the test digits."""
    torch.manual_seed(seed)
    model = ViTForImageClassification(CONFIG)
    images, labels, _, _ = data()
    order = torch.empty(0, dtype=torch.long)

    def loss(step: int) -> torch.Tensor:
        nonlocal order
        if step % (TRAIN // 50) == 0:
            order = torch.randperm(TRAIN)
        pick = order[(step % (TRAIN // 50)) * 50 :][:50]
        shift = torch.randint(-3, 4, (2,)).tolist()
        batch = torch.roll(images[pick], shift, dims=(2, 3))
        return F.cross_entropy(model(pixel_values=batch).logits, labels[pick], label_smoothing=0.1)

    descend(model.parameters(), loss, epochs * (TRAIN // 50), 2e-3, decay=0.05)
    return model.eval()


@torch.no_grad()
def accuracy(model: ViTForImageClassification) -> float:
    """On the 597 test digits, with whatever is attached to the model."""
    _, _, images, labels = data()
    right = sum(
        int((model(pixel_values=x).logits.argmax(1) == y).sum())
        for x, y in zip(images.split(100), labels.split(100), strict=True)
    )
    return right / len(labels)
