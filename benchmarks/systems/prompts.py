"""Checks of the family context that shorten text: generated reviews, and docstrings read by MiniLM."""

from __future__ import annotations

import math
from collections import Counter
from functools import cache

import numpy as np

import tokensieve as ts
from benchmarks import retrieval
from benchmarks.systems.bed import SEED, Outcome, check
from benchmarks.systems.bed import CheckContext as Testbed
from tokensieve.prompt.compress import Compressor
from tokensieve.retrieval.evaluation.evaluate import measures, ranks
from tokensieve.sites.prompt.counting import TokenCounter
from tokensieve.sites.prompt.cutting import cut
from tokensieve.sites.prompt.filling import costs_of, fill
from tokensieve.text.loading import open_tokenizer

REVIEWS, DRAWS = (4, 20, 75), 5
DOCUMENTS, QUERIES, LONGEST, KEEP = 120, 120, 500, 0.8
TOPICS = {
    "battery": (
        "nine hours",
        ["The battery lasts {}.", "I get {} out of the battery.", "On one charge the battery runs for {}."],
    ),
    "delivery": ("eleven days", ["Delivery took {}.", "The parcel was under way for {}.", "Shipping it took {}."]),
    "price": ("forty euros", ["It costs {}.", "I paid {} for it.", "The price was {} when I bought it."]),
    "screen": (
        "six inches",
        ["The screen measures {}.", "Its display is {} wide.", "The screen of {} is easy to read."],
    ),
}
"""What reviews are about, with the fact that some of each tell."""
FILLER = (
    "I am quite happy with the {} so far.", "The {} could be better, to be honest.", "My sister thinks the {} is fine.",
    "About the {} I have nothing more to say.", "The {} was what made me choose it.", "Others complained about the {}, I do not.",
)  # fmt: skip


@cache
def compressor() -> Compressor:
    return Compressor(encoder=ts.load_encoder())


def reviews(count: int, seed: int) -> list[str]:
    """As many reviews, the topics in turn; at least one of a topic tells its fact, and half of the others."""
    rng, out, told = np.random.default_rng(seed), [], Counter[str]()
    for number in range(count):
        topic = list(TOPICS)[number % len(TOPICS)]
        fact, ways = TOPICS[topic]
        lines = [FILLER[int(i)].format(topic) for i in rng.choice(len(FILLER), 3, replace=False)]
        if not told[topic] or rng.random() < 0.5:
            told[topic] += 1
            lines.insert(int(rng.integers(4)), ways[int(rng.integers(len(ways)))].format(fact))
        out.append(" ".join(lines))
    return out


def recall(text: str) -> float:
    """The share of the facts that a text tells."""
    return sum(fact in text for fact, _ in TOPICS.values()) / len(TOPICS)


@check(104)
def crag(_: Testbed) -> Outcome:
    """Reviews from 4 to 75: digests of tokens within 20%, at least 46% below all reviews joined; planted facts told
    more often than by random passages of as many tokens."""
    size: dict[int, list[int]] = {n: [] for n in REVIEWS}
    told: dict[str, list[float]] = {"crag": [], "random": []}
    joined = 0
    for draw in range(DRAWS):
        for count in REVIEWS:
            texts = reviews(count, SEED * 100 + draw)
            # Without a budget of its own: all but one token may stay, and the digests decide.
            made = compressor()(texts, keep=0.999, method="crag")
            size[count].append(made.after)
        joined += made.before
        told["crag"].append(recall(made.text))
        rival = Compressor(encoder=ts.load_encoder(), seed=draw)
        told["random"].append(recall(rival(texts, keep=made.after, method="random-text", unit="passage").text))
    tokens = {count: round(float(np.mean(found)), 1) for count, found in size.items()}
    n = {f"tokens of {count} reviews": value for count, value in tokens.items()}
    n["all of 75"] = round(joined / DRAWS, 1)
    n |= {f"recall, {name}": round(float(np.mean(found)), 4) for name, found in told.items()}
    flat = max(tokens.values()) <= 1.2 * min(tokens.values())
    return flat and tokens[75] <= 0.54 * n["all of 75"] and n["recall, crag"] > n["recall, random"], n


def by_frequency(texts: list[str], rooms: list[int]) -> list[str]:
    """Words of the lowest tf-idf left out, until a text has so many tokens."""
    count = TokenCounter(open_tokenizer(ts.load_encoder().tokenizer))  # type: ignore[attr-defined]
    words = [[u.lower() for u in cut(text, [0], "word").units()] for text in texts]
    found = Counter(word for own in words for word in set(own))
    out = []
    for text, own, room in zip(texts, words, rooms, strict=True):
        made, often = cut(text, [0], "word"), Counter(own)
        worth = [often[w] * math.log(len(texts) / found[w]) for w in own]
        order = sorted(range(len(own)), key=lambda i: (-worth[i], i))
        spans = fill(made, order, [], costs_of(made, count), room, count).spans
        out.append("".join(text[a:b] for a, b in spans))
    return out


@check(112)
def tcra(_: Testbed) -> Outcome:
    """Docstrings without 20% of their words: nDCG@10 of MiniLM above random and above tf-idf deletion at as many tokens;
    every text a subsequence of its source."""
    bed = retrieval.CheckContext(DOCUMENTS, slice(QUERIES))
    encoder = bed.encoder
    texts = [text[:LONGEST] for text in bed.collection.bodies]
    made = [compressor()(t, keep=KEEP, method="tcra") for t in texts]
    rooms = [max(1, m.after) for m in made]
    lost = Compressor(encoder=encoder, seed=SEED)
    others = {
        "all words": texts, "tcra": [m.text for m in made],
        "random": [lost(t, keep=r, method="random-text", unit="word").text for t, r in zip(texts, rooms, strict=True)],
        "tf-idf": by_frequency(texts, rooms),
    }  # fmt: skip
    query = encoder.queries(bed.texts).single
    assert query is not None
    n: dict[str, float] = {}
    for name, some in others.items():
        single = encoder.documents(some).single
        assert single is not None
        rank = ranks((query @ single.T).numpy(), bed.relevant)
        n[name] = round(float(measures(rank)["nDCG@10"].mean()), 4)
    n["of the tokens"] = round(sum(rooms) / sum(m.before for m in made), 4)
    whole = all(_within(m.text, m.source) for m in made)
    return whole and n["tcra"] > max(n["random"], n["tf-idf"]), n


def _within(text: str, source: str) -> bool:
    rest = iter(source)
    return all(c in rest for c in text)
