"""Checks of text encoders: a small one, trained on docstrings of the training half and measured on the others, and MiniLM."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from benchmarks.systems.bed import Bed, Outcome, check
from tokensieve.modules.contrast import fit, in_batch
from tokensieve.modules.encoder import Vocabulary, batch, tiny
from tokensieve.retrieval.docstrings import Passage, collect
from tokensieve.retrieval.encode import load
from tokensieve.retrieval.sticky import scan
from tokensieve.sites.temperature import high_frequency, likeness, slope, tempered

Ids = list[list[int]]


@cache
def texts(held_out: bool) -> list[Passage]:
    return [p for p in collect().passages if p.held_out == held_out]


@cache
def vocabulary() -> Vocabulary:
    """Of the training half's texts."""
    return Vocabulary([f"{p.query} {p.body}" for p in texts(False)])


@cache
def halves(held_out: bool, longest: int = 48) -> tuple[Ids, Ids]:
    """The first and the second half of each passage of at most twice ``longest`` tokens."""
    ids = [found[: 2 * longest] for found in vocabulary().ids([p.body for p in texts(held_out)])]
    return [i[: len(i) // 2] for i in ids], [i[len(i) // 2 :] for i in ids]


@check(122)
def temperature(_: Bed) -> Outcome:
    """MiniLM, 150 passages cut to 16, 32, 64 and 128 tokens: their mean cosine rises with length, less steeply at temperature
    0.9, where the last states hold more high-frequency energy."""
    encoder: Any = load()
    long = [p.body for p in texts(True)]
    ids = [i for i in encoder.tokenizer(long, truncation=True, max_length=256)["input_ids"] if len(i) >= 128][:150]
    n: dict[str, Any] = {"texts": len(ids)}
    for name, warmth in (("1", None), ("0.9", 0.9)):
        vectors, energy, bins = [], [], []
        for k, length in enumerate((16, 32, 64, 128)):
            cut = torch.tensor([i[: length - 1] + i[-1:] for i in ids])
            for part in cut.split(50):
                real = torch.ones_like(part, dtype=torch.bool)
                states = states_of(encoder.model, part, warmth)
                vectors.append(states.mean(1))
                energy += high_frequency(states, real).tolist()
                bins += [k] * len(part)
        like = likeness(torch.cat(vectors), torch.tensor(bins))
        n[f"cosine by length at {name}"] = [round(v, 4) for v in like.tolist()]
        n[f"slope at {name}"] = round(slope(like), 5)
        n[f"high frequency at {name}"] = round(float(np.mean(energy)), 5)
    rising = n["cosine by length at 1"] == sorted(n["cosine by length at 1"])
    sharper = n["slope at 0.9"] < n["slope at 1"] and n["high frequency at 0.9"] > n["high frequency at 1"]
    return rising and sharper, n


@torch.no_grad()
def states_of(model: nn.Module, ids: Tensor, warmth: float | None) -> Tensor:
    if warmth is None:
        return model(input_ids=ids).last_hidden_state
    with tempered(model, warmth):
        return model(input_ids=ids).last_hidden_state


def averaged(encoder: nn.Module, ids: Tensor, real: Tensor) -> Tensor:
    states = encoder(input_ids=ids, attention_mask=real.long()).last_hidden_state
    return normalize((states * real[..., None]).sum(1) / real.sum(1, keepdim=True), dim=1)


@check(307)
def sticky(_: Bed) -> Outcome:
    """Small sentence encoder, one id never trained on whose embedding is the mean of all others, 20 times as long: the scan
    of the vocabulary ranks it first, and similarities with it inserted spread less than with other tokens."""
    size = len(vocabulary())
    torch.manual_seed(0)
    encoder = tiny(size + 1)
    first, second = halves(False, 24)

    def loss(index: Tensor) -> Tensor:
        sides = [averaged(encoder, *batch([part[i] for i in index], 32)) for part in (first, second)]
        return in_batch(sides[0] @ sides[1].T)

    fit([encoder], loss, len(first), steps=160, what="sentence encoder")
    with torch.no_grad():
        table = encoder.embeddings.word_embeddings.weight
        table[size] = 20 * table[4:size].mean(0)
    tokens = [*range(4, size, 4), size]
    sentences = [s[:16] for s in halves(True, 24)[0] if len(s) >= 12]
    draw = torch.Generator().manual_seed(0)
    order = torch.randperm(len(sentences), generator=draw).tolist()[:400]
    pairs = [(sentences[a], sentences[b]) for a, b in zip(order[::2], order[1::2], strict=True)]
    found = scan(lambda ids: averaged(encoder, *batch(ids, 48)), pairs, tokens)
    rank = [one.token for one in found].index(size) + 1
    one, others = found[rank - 1], [other.spread for other in found if other.token != size]
    n = {
        "tokens": len(tokens),
        "rank": rank,
        "score": round(one.score, 3),
        "next best": round(found[rank == 1].score, 3),
    }
    n |= {"spread": round(one.spread, 4), "spread of others": round(float(np.mean(others)), 4)}
    n |= {"verified": sum(other.sticky for other in found)}
    return rank == 1 and one.spread < n["spread of others"], n
