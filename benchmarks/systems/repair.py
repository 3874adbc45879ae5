"""Check of repairs by a generator that is shown the nearest fix of before."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.reference.decoder import Decoder, Shape
from benchmarks.reference.rap_gen_260 import NAMES, PLACES, Pair, Retriever, pairs, prompt
from benchmarks.systems import small
from benchmarks.systems.bed import SEED, CheckContext, Outcome, check
from tokensieve.retrieval.encoders.loading import load_encoder

KINDS, EACH, TESTS = 60, 4, 2
STEPS, BATCH = 800, 64
WORDS = ("<pad>", "<bug>", "<fix>", *NAMES, *PLACES)
PLACE = {word: i for i, word in enumerate(WORDS)}
FIX = 3
"""Tokens of a fix."""


def ids(words: Sequence[str]) -> list[int]:
    return [PLACE[word] for word in words]


def example(i: int) -> Tensor:
    """(L,) for training: a pair, after another of its kind but in every fourth batch, of names drawn anew every time."""
    draw = random.Random(SEED * 1_000_003 + i)
    (kind,) = pairs(1, 2, draw.getrandbits(30))
    names = dict(zip(NAMES, draw.sample(NAMES, len(NAMES)), strict=True))
    one, other = (Pair(p.said, *(tuple(names.get(w, w) for w in part) for part in (p.bug, p.fix)), 0) for p in kind)
    return torch.tensor(ids([*prompt(one, other if i // BATCH % 4 else None), *one.fix]))


def loss(model: Decoder, rows: Tensor) -> Tensor:
    """Of the fix alone."""
    logits = model(rows)[:, -FIX - 1 : -1]
    return F.cross_entropy(logits.flatten(0, 1), rows[:, -FIX:].flatten())


@torch.no_grad()
def exact(model: Decoder, bugs: Sequence[Pair], shown: Sequence[Pair | None]) -> float:
    """The share of bugs that are repaired to the letter."""
    rows = torch.tensor([ids(prompt(bug, one)) for bug, one in zip(bugs, shown, strict=True)])
    for _ in range(FIX):
        rows = torch.cat([rows, model(rows)[:, -1].argmax(-1, keepdim=True)], 1)
    wanted = torch.tensor([ids(bug.fix) for bug in bugs])
    return round(float((rows[:, -FIX:] == wanted).all(1).float().mean()), 4)


@check(260)
def rap_gen(_: CheckContext) -> Outcome:
    """Synthetic bugs of 60 kinds, 240 fixes known: a small decoder repairs more to the letter with the fix that hybrid search
    finds than with a random one or none; hybrid recall at 1 (a fix of the kind) at least that of words or vectors alone."""
    made = pairs(KINDS, EACH + TESTS, SEED)
    known, bugs = [p for kind in made for p in kind[:EACH]], [p for kind in made for p in kind[EACH:]]
    n: dict[str, Any] = {"bugs": len(bugs)}
    found: dict[str, list[Pair]] = {}
    with TemporaryDirectory() as folder:
        retriever = Retriever(Path(folder) / "index", known, load_encoder())
        for name, fuse in (("hybrid", 0.5), ("words", 1.0), ("vectors", "none")):
            found[name] = retriever.nearest(bugs, fuse)  # type: ignore[arg-type]
            right = [one.kind == bug.kind for one, bug in zip(found[name], bugs, strict=True)]
            n[f"recall at 1, {name}"] = round(sum(right) / len(right), 4)
    draw = random.Random(SEED)
    found["random"] = [draw.choice(known) for _ in bugs]
    torch.manual_seed(SEED)
    model = Decoder(len(WORDS), Shape())
    small.train("260", model, lambda rows: loss(model, rows), example, STEPS, 3e-3, BATCH)
    n |= {f"repaired, {k}": exact(model, bugs, v) for k, v in found.items()}
    n["repaired, none shown"] = exact(model, bugs, [None] * len(bugs))
    best = n["repaired, hybrid"]
    shown = best > max(n["repaired, random"], n["repaired, none shown"])
    return shown and n["recall at 1, hybrid"] >= max(n["recall at 1, words"], n["recall at 1, vectors"]), n
