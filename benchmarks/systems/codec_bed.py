"""The bed of checks of quantizers: handwritten digits in the small autoencoder of the bench, results kept on disk."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor

import tokensieve
from tokensieve.bench.codec.autoencoder import Autoencoder
from tokensieve.codec import quantizer, usage
from tokensieve.core.files import write_json

SEEDS, STEPS, TOKENS, LATENT = (0, 1, 2), 300, 16, 16
TRAIN = 1400
FILE = Path("out/systems/codec.json")
PUBLISHED = {"name": "vq", "codes": 1024, "dim": LATENT, "kmeans": False, "revive": 0.0}
REVIVED = {"name": "vq", "codes": 1024, "dim": LATENT}


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


@functools.cache
def _mark() -> str:
    """Of all code that decides a number here."""
    root = Path(tokensieve.__file__).parent
    files = [*sorted((root / "codec").rglob("*.py")), root / "bench/codec/autoencoder.py", Path(__file__)]
    return hashlib.sha256("".join(f.read_text(encoding="utf-8") for f in files).encode()).hexdigest()[:16]


def measured(options: dict[str, Any] | None, seed: int, tokens: int = TOKENS) -> dict[str, float]:
    """Error and usage on held-out digits, from an earlier run of the same code where there was one.

    Raises:
        ValueError: it collapsed: fewer than 5% of the codes that it could use, or no better than the mean digit.
    """
    key = f"{_mark()} {json.dumps(options, sort_keys=True)} {seed} {tokens}"
    held = json.loads(FILE.read_text()) if FILE.is_file() else {}
    if key not in held:
        made = fitted(options, seed, tokens)
        held[key] = numbers(made)
        FILE.parent.mkdir(parents=True, exist_ok=True)
        write_json(FILE, held)
    return held[key]


@torch.no_grad()
def numbers(made: Autoencoder) -> dict[str, float]:
    """Mean squared error, distinct codes, their share of those that can be used, and whether it collapsed."""
    train, test, _, _ = digits()
    encoded = made.encode(test)
    error = float((made.decode(encoded) - test).square().mean())
    blank = float((train.mean(0) - test).square().mean())
    if isinstance(encoded, Tensor):
        return {"mse": error, "blank": blank}
    seen = usage(torch.cat([made.encode(train).indices, encoded.indices]), encoded.levels)  # type: ignore[union-attr]
    most = min(math.prod(encoded.levels), seen.tokens)
    return {
        "mse": error, "blank": blank, "codes": seen.distinct, "used": seen.distinct / most, "entropy": seen.entropy,
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
