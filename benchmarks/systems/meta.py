"""A check of meta-tokens: a small language model tuned to recall lists among them, and asked about twice as many."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.reference.decoder import Decoder, causal
from benchmarks.reference.meta_tokens_243 import MetaTokens, inject
from benchmarks.systems import small
from benchmarks.systems.bed import SEED, CheckContext, Outcome, check
from tokensieve.testbed import lm

LISTS, ITEMS, QUESTIONS, SHARE = 12, 4, 6, 0.1
STEPS, BATCH, HELD = 150, 4, 64


@functools.cache
def say() -> lm.Speech:
    return lm.speech(lm.load()[1])


def lists(index: int, seed: int, count: int, questions: int) -> Tensor:
    """Ids of lines ``name : a b c d``, each of other words, then of some of the lines again, to be recalled from their names."""
    rng = np.random.default_rng((SEED, seed, index))
    rows = rng.choice(say().words, (count, 1 + ITEMS), replace=False)
    marks = np.full((count, 1), say().colon), np.full((count, 1), say().line)
    text = np.concatenate([rows[:, :1], marks[0], rows[:, 1:], marks[1]], 1)
    again = text[rng.choice(count, questions, replace=False)]
    return torch.from_numpy(np.concatenate([text, again]).astype(np.int64).ravel())


def answers(ids: Tensor, where: Tensor, questions: int) -> tuple[Tensor, Tensor]:
    """(B, questions * items): the places of items to be recalled among ids with meta-tokens, and what they are."""
    line = ITEMS + 3
    at = (~where).nonzero()[:, 1].view(len(ids), -1)[:, -line * questions :].unflatten(1, (questions, line))
    at = at[..., 2 : 2 + ITEMS].flatten(1)
    return at, ids.gather(1, at)


def told(model: MetaTokens, ids: Tensor, where: Tensor, questions: int, attend: Any = None) -> tuple[Tensor, Tensor]:
    """Logits (B, questions * items, V) of items to be recalled, and what they are."""
    states = model(ids, where) if attend is None else model(ids, where, attend)
    at, gold = answers(ids, where, questions)
    own = states.gather(1, (at - 1)[..., None].expand(-1, -1, states.shape[2]))
    return model.model.head(own), gold


class Received:
    """Attention that notes what meta-tokens and others receive, from each query that sees them; the first token apart."""

    def __init__(self, where: Tensor):
        self.where, self.sums = where, {True: [0.0, 0], False: [0.0, 0]}

    def __call__(self, layer: int, x: Tensor, q: Tensor, k: Tensor, v: Tensor, memory: dict | None = None) -> Tensor:
        length, share = q.shape[2], q.shape[1] // k.shape[1]
        scores = q @ k.repeat_interleave(share, 1).transpose(-1, -2) * q.shape[-1] ** -0.5
        a = scores.masked_fill(~causal(length, length), -torch.inf).softmax(-1)
        per_query = a.mean(1).sum(1) / torch.arange(length, 0, -1)
        for kind in (True, False):
            own = (self.where == kind)[:, 1:]
            self.sums[kind][0] += float(per_query[:, 1:][own].sum())
            self.sums[kind][1] += int(own.sum())
        return a @ v.repeat_interleave(share, 1)

    def mean(self, kind: bool) -> float:
        return self.sums[kind][0] / self.sums[kind][1]


@check(243)
def meta_tokens(_: CheckContext) -> Outcome:
    """The packaged model recalls lists of 4 items by their names, a tenth of meta-tokens in random places: tuned on 12 lists, 150
    steps of 4, with and without meta-attention. Items right of 24 lists: more with it; meta-tokens receive more attention than
    ordinary tokens."""
    n: dict[str, Any] = {}
    received: Received | None = None
    for name, attend_meta in (("with", True), ("without", False)):
        torch.manual_seed(SEED)
        model = MetaTokens(Decoder.of_llama(lm.load()[0]), attend_meta)
        draw = torch.Generator().manual_seed(SEED)

        def loss(rows: Tensor, model: MetaTokens = model, draw: torch.Generator = draw) -> Tensor:
            logits, gold = told(model, *inject(rows, SHARE, draw), QUESTIONS)
            return F.cross_entropy(logits.flatten(0, 1), gold.flatten())

        small.train(f"243 {name}", model, loss, lambda i: lists(i, 0, LISTS, QUESTIONS), STEPS, 3e-4, BATCH)
        draw = torch.Generator().manual_seed(SEED + 1)
        for times in (1, 2):
            questions = QUESTIONS * times
            rows = torch.stack([lists(i, 1, LISTS * times, questions) for i in range(HELD)])
            right = []
            for part in rows.split(16):
                ids, where = inject(part, SHARE, draw)
                noted = Received(where) if received is None else received
                noted.where = where
                with torch.no_grad():
                    logits, gold = told(model, ids, where, questions, noted if attend_meta and times == 2 else None)
                right.append(logits.argmax(-1) == gold)
                if attend_meta and times == 2:
                    received = noted
            n[f"right of {LISTS * times} lists, {name}"] = round(float(torch.cat(right).float().mean()), 4)
    assert received is not None
    n["attention received, meta"] = round(received.mean(True), 6)
    n["attention received, ordinary"] = round(received.mean(False), 6)
    better = n[f"right of {2 * LISTS} lists, with"] > n[f"right of {2 * LISTS} lists, without"]
    return better and n["attention received, meta"] > n["attention received, ordinary"], n
