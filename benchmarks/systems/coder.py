"""Check of a code model that sees a window, bridges and definitions."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.reference.decoder import Decoder
from benchmarks.reference.longcoder_178 import LongCoder, definitions
from benchmarks.systems import small
from benchmarks.systems.bed import CheckContext, Outcome, check
from benchmarks.systems.cache_trained import masked_by, seen_within
from tokensieve.testbed import lm

LENGTH, WINDOW, NAME = 1024, 128, re.compile(r"[A-Za-z_]\w{2,}")


@functools.cache
def pieces() -> list[str]:
    tokenizer = lm.load()[1]
    return [tokenizer.decode([i]) for i in range(len(tokenizer))]


def marked(ids: Tensor) -> Tensor:
    """(T,) to (2, T): the ids, and which of them are part of a definition."""
    return torch.stack([ids, torch.tensor(definitions([pieces()[i] for i in ids.tolist()])).long()])


def far_names(row: Tensor) -> Tensor:
    """(2, T) to (T,): tokens of names that a definition before the window gives and nothing within it repeats."""
    parts = [pieces()[i] for i in row[0].tolist()]
    owner = [t for t, part in enumerate(parts) for _ in part]
    known: dict[str, int] = {}
    last: dict[str, int] = {}
    far = torch.zeros(len(parts), dtype=torch.bool)
    for found in NAME.finditer("".join(parts)):
        name, first, end = found[0], owner[found.start()], owner[found.end() - 1]
        if first - known.get(name, first) > WINDOW and first - last[name] > WINDOW:
            far[first : end + 1] = True
        if row[1, first]:
            known.setdefault(name, end)
        last[name] = end
    return far


@check(178)
@torch.no_grad()
def longcoder(bed: CheckContext) -> Outcome:
    """The packaged model tuned on Python with a window, alone or with bridges and definitions, equal steps: held-out
    loss on names defined before the window below the plain window's; attended pairs grow linearly with the length."""
    plain = Decoder.of_llama(lm.load()[0])
    coder = LongCoder(copy.deepcopy(plain), WINDOW, 16, 64, 128)
    window = masked_by(seen_within(WINDOW, LENGTH, 0))
    ways: dict[str, tuple[Any, Callable[[Tensor], Tensor]]] = {
        "longcoder": (coder, lambda rows: coder(rows[:, 0], rows[:, 1].bool())),
        "window": (plain, lambda rows: plain(rows[:, 0], window)),
    }
    text = small.windows(small.tokens(400_000, "code"), LENGTH)
    test = torch.stack([marked(row) for row in small.held_out(LENGTH, 24, ("code",))])
    far = torch.stack([far_names(row) for row in test])[:, 1:]
    n: dict[str, Any] = {"tokens of far names": int(far.sum())}
    for name, (model, logits_of) in ways.items():

        def loss(rows: Tensor, logits_of: Callable[[Tensor], Tensor] = logits_of) -> Tensor:
            return small.next_token(logits_of(rows), rows[:, 0])

        small.train(f"178 {name}", model, loss, lambda i: marked(text(i)), 30, 3e-4, 2)
        losses = torch.cat(
            [
                F.cross_entropy(logits_of(part)[:, :-1].transpose(1, 2), part[:, 0, 1:], reduction="none")
                for part in test.split(4)
            ]
        )
        n[name], n[f"{name}, all tokens"] = round(float(losses[far].mean()), 4), round(float(losses.mean()), 4)
    counts = []
    for length in (512, 1024, 2048):
        row = marked(small.held_out(length, 1, ("code",))[0])[None]
        coder(row[:, 0], row[:, 1].bool())
        counts.append(round(coder.pairs))
    n["pairs at 512, 1024, 2048"] = counts
    linear = counts[2] - counts[1] <= 2.1 * (counts[1] - counts[0])
    return n["longcoder"] < n["window"] and linear, n
