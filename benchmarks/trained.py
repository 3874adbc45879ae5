"""What trained checks share: training pairs, held-out queries, and one way to train and to measure a head.

Queries of the training half go with their own passages, cut to `CROP` tokens; what is measured are held-out queries against whole
passages. Everything is encoded once by MiniLM (`out/encoded`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import retrieval
from tokensieve.retrieval.encoders.encoded import Encoded
from tokensieve.retrieval.encoders.head import through
from tokensieve.retrieval.evaluation.evaluate import late_interaction, measures, ranks
from tokensieve.retrieval.heads.contrast import chamfer, fit, in_batch, pad

CROP, STEPS = 64, 162
"""Tokens of a passage in training; steps of 32 pairs, three times over all of them."""
PASSAGES, QUERIES = 1500, 300
OUT = 128


@cache
def _bed() -> retrieval.CheckContext:
    return retrieval.CheckContext()


@cache
def training() -> tuple[Encoded, Encoded]:
    """Queries of the training half and the passage of each, row by row."""
    texts, places = _bed().collection.queries(held_out=False)
    return _bed().encoded("tuning", texts), crop(_bed().documents.rows(places))


@cache
def held_out() -> tuple[Encoded, Encoded, np.ndarray]:
    """The first `QUERIES` held-out queries, the first `PASSAGES` passages, and the place of each query's passage."""
    bed = _bed()
    places = np.array(bed.relevant[:QUERIES])
    assert places.max() < PASSAGES
    return bed.queries.rows(range(QUERIES)), bed.documents.rows(range(PASSAGES)), places


def crop(encoded: Encoded) -> Encoded:
    """Texts without what stands behind their first `CROP` tokens."""
    step = torch.arange(len(encoded.vectors)) - encoded.offsets[:-1].repeat_interleave(encoded.lengths)
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), encoded.lengths.clamp(max=CROP).cumsum(0)])
    return encoded.at((step < CROP).nonzero()[:, 0], offsets, encoded.single)


@cache
def named_training() -> tuple[Encoded, Encoded]:
    """As :func:`training`, with words numbered alike in all texts."""
    texts, places = _bed().collection.queries(held_out=False)
    queries, documents = training()
    return _named(queries, texts), _named(documents, [_bed().collection.bodies[i] for i in places])


@cache
def named_held_out() -> tuple[Encoded, Encoded]:
    """As :func:`held_out`, with words numbered alike in all texts."""
    queries, documents, _ = held_out()
    return _named(queries, _bed().texts[:QUERIES]), _named(documents, _bed().collection.bodies[:PASSAGES])


NUMBERS: dict[str, int] = {}


def _named(encoded: Encoded, texts: Sequence[str]) -> Encoded:
    """The signal ``word`` as a number of the word that belongs to it in every text."""
    text = torch.arange(len(encoded)).repeat_interleave(encoded.lengths).tolist()
    spans, words = encoded.spans.tolist(), encoded.signals["word"].tolist()
    names: dict[tuple[int, int], list[int]] = {}
    for i, word in enumerate(words):
        place = names.setdefault((text[i], word), spans[i])
        # The pieces of a word's first place follow one another.
        if word >= 0 and spans[i][0] == place[1]:
            names[text[i], word] = [place[0], spans[i][1]]
    number = {
        key: -1 if key[1] < 0 else NUMBERS.setdefault(texts[key[0]][a:b].strip().casefold(), len(NUMBERS))
        for key, (a, b) in names.items()
    }
    return encoded.with_signals(word=torch.tensor([number[text[i], word] for i, word in enumerate(words)]))


def late(head: Any, index: Tensor) -> Tensor:
    """``(B, B)``: MaxSim of the pairs of a batch, as a head reads them."""
    sides = [(part.rows(index), query) for part, query in zip(training(), (True, False), strict=True)]
    read = [head.read(some.vectors, some.offsets, some.signals["word"], query) for some, query in sides]
    return chamfer(*(x for vectors, _, offsets in read for x in pad(vectors, offsets)))


def train(head: Any, seed: int, what: str, steps: int = STEPS) -> Any:
    """A head trained by MaxSim with in-batch negatives."""
    fit([head], lambda index: in_batch(late(head, index)), len(training()[0]), steps=steps, seed=seed, what=what)
    return head


def ndcg(rank: np.ndarray) -> float:
    return float(measures(rank)["nDCG@10"].mean())


def found(queries: Encoded, documents: Encoded) -> float:
    """nDCG@10 of held-out queries by MaxSim."""
    return ndcg(ranks(late_interaction(queries, documents), held_out()[2]))


def measured(head: Any) -> float:
    """nDCG@10 of held-out queries as a head reads both sides."""
    queries, documents, _ = held_out()
    return found(through(head, queries, True), through(head, documents, False))


def mean(values: list[float]) -> float:
    return round(float(np.mean(values)), 4)
