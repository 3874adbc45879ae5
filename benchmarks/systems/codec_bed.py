"""The bed of checks of quantizers: handwritten digits in the small autoencoder of the bench, results kept on disk."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch
from sklearn.datasets import load_digits
from torch import Generator, Tensor, nn

import tokensieve
from benchmarks.descent import descend
from tokensieve.bench.codec import coded
from tokensieve.bench.codec.autoencoder import Autoencoder
from tokensieve.codec import quantizer, usage
from tokensieve.core.files import write_json

SEEDS, STEPS, TOKENS, LATENT = (0, 1, 2), 300, 16, 16
TRAIN = 1400
FILE = Path("out/systems/codec.json")
PUBLISHED = {"name": "vq", "codes": 1024, "dim": LATENT, "kmeans": False, "revive": 0.0}
REVIVED = {"name": "vq", "codes": 1024, "dim": LATENT}
BASELINES = {"default": {"kmeans": False, "revive": 0.0}, "revived": {}}
"""Options of ``vq``: as it was published, and with k-means start and revival."""
FEATURES = 32
Model = TypeVar("Model", bound=nn.Module)


@functools.cache
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images ``(n, 1, 8, 8)`` from 0 to 1 and labels, of the training and of the test part."""
    data = load_digits()
    order = torch.randperm(len(data.images), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(data.images, dtype=torch.float32)[order, None] / 16
    labels = torch.tensor(data.target)[order]
    return images[:TRAIN], images[TRAIN:], labels[:TRAIN], labels[TRAIN:]


def fitted(options: dict[str, Any] | None, seed: int, tokens: int = TOKENS) -> Autoencoder:
    """An autoencoder trained with a quantizer, or with none."""
    torch.manual_seed(seed)
    made = None if options is None else quantizer(**options)
    out = Autoencoder((1, 8, 8), tokens, made)
    with torch.enable_grad():
        out.fit(digits()[0], STEPS, seed)
    return out


def trained(
    model: Model, loss: Callable[[Tensor, Generator], Tensor], seed: int, steps: int = STEPS, batch: int = 16,
    rate: float = 5e-3, rows: int = TRAIN,
) -> Model:  # fmt: skip
    """A model trained for so many steps by a loss of drawn rows ``(batch,)``; what it calls may draw from the generator."""
    draw = torch.Generator().manual_seed(seed)
    descend(
        [p for p in model.train().parameters() if p.requires_grad],
        lambda step: loss(torch.randint(rows, (batch,), generator=draw), draw),
        steps, rate, decay=1e-4, clip=1.0, warmup=0.1,
    )  # fmt: skip
    return model.eval()


@functools.cache
def teacher() -> tuple[Tensor, Tensor]:
    """Features ``(n, 16, 32)`` at the 4 x 4 places of training and test digits, by a small classifier trained on the former."""
    torch.manual_seed(0)
    train, test, labels, _ = digits()
    body = nn.Sequential(
        nn.Conv2d(1, FEATURES, 3, padding=1), nn.GELU(), nn.Conv2d(FEATURES, FEATURES, 2, 2), nn.GELU(),
        nn.Conv2d(FEATURES, FEATURES, 3, padding=1), nn.GELU(),
    )  # fmt: skip
    net = nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(FEATURES, 10))
    trained(net, lambda rows, draw: nn.functional.cross_entropy(net(train[rows]), labels[rows]), 0, batch=64)
    with torch.no_grad():
        one, two = (body(images).flatten(2).transpose(1, 2) for images in (train, test))
    return one, two


def probe(train: Tensor, test: Tensor) -> float:
    """Accuracy of a linear probe of labels on what stands for digits, ``(n, ...)``."""
    return coded.probe(train.flatten(1), test.flatten(1), digits()[2:])


@functools.cache
def mark(*more: str) -> str:
    """Of all code that decides a number here."""
    root = Path(tokensieve.__file__).parent
    files = [
        *sorted((root / "codec").rglob("*.py")),
        root / "bench/codec/autoencoder.py",
        Path(__file__),
        *map(Path, more),
    ]
    return hashlib.sha256("".join(f.read_text(encoding="utf-8") for f in files).encode()).hexdigest()[:16]


def measured(options: dict[str, Any] | None, seed: int, tokens: int = TOKENS) -> dict[str, float]:
    """Error and usage on held-out digits of an autoencoder with a quantizer, or with none."""
    return kept(f"{json.dumps(options, sort_keys=True)} {tokens}", seed, lambda: numbers(fitted(options, seed, tokens)))


def kept(name: str, seed: int, work: Callable[[], dict[str, Any]], *modules: ModuleType) -> dict[str, Any]:
    """What ``work`` gives, from an earlier run of the same code where there was one.

    Args:
        name: of what is measured, with all its options.
        modules: whose code decides it too.
    """
    key = f"{mark(*(str(m.__file__) for m in modules))} {name} {seed}"
    held = json.loads(FILE.read_text()) if FILE.is_file() else {}
    if key not in held:
        torch.manual_seed(seed)
        held[key] = work()
        FILE.parent.mkdir(parents=True, exist_ok=True)
        write_json(FILE, held)
    return held[key]


@torch.no_grad()
def numbers(made: Autoencoder) -> dict[str, float]:
    """Mean squared error, distinct codes, their share of those that can be used, and whether it collapsed."""
    train, test, _, _ = digits()
    encoded = made.encode(test)
    error = float((made.decode(encoded) - test).square().mean())
    if isinstance(encoded, Tensor):
        return {"mse": error}
    return described(torch.cat([made.encode(train).indices, encoded.indices]), encoded.levels, error)  # type: ignore[union-attr]


def described(indices: Tensor, levels: tuple[int, ...], error: float) -> dict[str, float]:
    """Usage of indices ``(n, N, C)`` of all digits beside the error on the test part, and whether it collapsed: fewer than 5%
    of the codes that it could use (of the first 1,024), or no better than the mean digit."""
    train, test, _, _ = digits()
    blank = float((train.mean(0) - test).square().mean())
    seen = usage(indices, levels)
    most = min(math.prod(levels), seen.tokens)
    return {
        "mse": error, "codes": seen.distinct, "used": seen.distinct / most, "entropy": seen.entropy,
        "least bit": min(part.entropy for part in seen.parts),
        "collapsed": float(seen.distinct < 0.05 * min(most, 1024) or error >= blank),
    }  # fmt: skip


def several(options: dict[str, Any] | None, tokens: int = TOKENS) -> list[dict[str, float]]:
    """The same for all seeds."""
    return [measured(options, seed, tokens) for seed in SEEDS]


def told(rows: Sequence[dict[str, float]], key: str, digits: int = 5) -> list[float]:
    """One number of each seed."""
    return [round(row[key], digits) for row in rows]


def wins(one: Sequence[float], two: Sequence[float]) -> int:
    """In how many seeds the first is smaller."""
    return sum(a < b for a, b in zip(one, two, strict=True))


def whole(*several_rows: Sequence[dict[str, float]]) -> bool:
    """Whether none collapsed, baselines of default VQ apart: theirs is what is to be shown."""
    return not any(row.get("collapsed") for rows in several_rows for row in rows)
