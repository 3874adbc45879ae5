"""What checks of trained parts share: text to train on that no held-out text is in, one seeded training, perplexities."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.systems.bed import SEED
from tokensieve.testbed import lm
from tokensieve.testbed.lm import corpus
from tokensieve.testbed.lm.evaluate import stream
from tokensieve.testbed.loop import TrainingStage, fit

GOLDEN = 0.6180339887498949


@functools.cache
def documents() -> list[corpus.CorpusDocument]:
    """The training part of the standard library and the guide: neither a held-out file nor a paragraph of one."""
    return corpus.split([*corpus.standard_library(), *corpus.guide()])[0]


@functools.cache
def tokens(count: int, kind: str | None = None) -> Tensor:
    """The first `count` tokens of the training text, or of one kind of it."""
    tokenizer = lm.load()[1].backend_tokenizer
    rows, total = [], 0
    for text in (d.text for d in documents() if kind in (None, d.kind)):
        rows.append(corpus.tokens(tokenizer, [text]))
        total += len(rows[-1])
        if total >= count:
            break
    return torch.from_numpy(np.concatenate(rows)[:count].astype(np.int64))


def windows(ids: Tensor, length: int) -> Callable[[int], Tensor]:
    """Sample i of (length,): successive ones fall into the largest gap, so all of it is read evenly."""

    def make(i: int) -> Tensor:
        start = int((i + 1) * GOLDEN % 1.0 * (len(ids) - length))
        return ids[start : start + length]

    return make


def train(
    name: str,
    module: nn.Module,
    loss: Callable[[Tensor], Tensor],
    make: Callable[[int], Any],
    steps: int,
    rate: float,
    batch: int,
    collate: Callable[[list], Any] = torch.stack,
) -> None:
    """Train `module` on samples `make(0)`, `make(1)`, ..; `loss` maps a batch to a scalar."""
    torch.manual_seed(SEED)

    def loss_of(batch: Any) -> tuple[Tensor, dict[str, float]]:
        return loss(batch["batch"]), {}

    with TemporaryDirectory() as folder, torch.enable_grad():
        stage = TrainingStage(name, rate, batch, steps=steps)
        modules = nn.ModuleDict({"module": module})
        fit(stage, modules, make, lambda rows: {"batch": collate(rows)}, loss_of, Path(folder), workers=0)
    module.eval()


def next_token(logits: Tensor, ids: Tensor) -> Tensor:
    """Mean loss of the next token: logits (B, T, V), ids (B, T)."""
    return F.cross_entropy(logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten())


def held_out(length: int, each: int, kinds: tuple[str, ...] = ("code", "guide")) -> Tensor:
    """(each * kinds, length): windows of held-out text that do not overlap."""
    rows = []
    for kind in kinds:
        ids = stream(lm.load()[1], kind)
        starts = np.random.default_rng(SEED).permutation(len(ids) // length)[:each] * length
        rows += [torch.as_tensor(ids[start : start + length]) for start in starts]
    return torch.stack(rows)


@torch.no_grad()
def perplexity(logits_of: Callable[[Tensor], Tensor], rows: Tensor, batch: int = 4) -> float:
    losses = [float(next_token(logits_of(part), part)) * len(part) for part in rows.split(batch)]
    return round(math.exp(sum(losses) / len(rows)), 4)


@functools.cache
def read_bytes(count: int) -> Tensor:
    """The first `count` bytes of the training text."""
    return torch.frombuffer(bytearray("".join(d.text for d in documents()).encode()[:count]), dtype=torch.uint8).long()


def held_out_bytes(length: int, each: int, kinds: tuple[str, ...] = ("code", "guide")) -> Tensor:
    """(each * kinds, length): windows of the bytes of held-out text that do not overlap."""
    rows = []
    for kind in kinds:
        text = "".join(d.text for d in lm.held_out() if d.kind == kind).encode()
        starts = np.random.default_rng(SEED).permutation(len(text) // length)[:each] * length
        rows += [torch.tensor(list(text[start : start + length])) for start in starts]
    return torch.stack(rows)
