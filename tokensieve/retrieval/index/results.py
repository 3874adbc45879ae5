"""Found: a passage that answers a query, and which of its characters each token of the query was matched with."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokensieve.parts.budget import check
from tokensieve.retrieval.encoders.encoded import Encoded, ends
from tokensieve.retrieval.encoders.reduce import reduce
from tokensieve.retrieval.index.index import Index
from tokensieve.retrieval.index.recipe import Recipe
from tokensieve.retrieval.index.search import Hit
from tokensieve.retrieval.scoring.maxsim import align, maxsim
from tokensieve.retrieval.sources.passages import Span, is_text

OWN = frozenset({"document", "digest", "of", "span", "text", "spans"})
"""Metadata fields that a library fills itself."""
CANDIDATES = 50
"""Passages that are ranked again where fewer vectors are asked for."""
LETTERS = re.compile(r"[^\W_\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]{2}")
"""Two of one word; Chinese and Japanese put no blanks between theirs, which stay as the encoder has cut them."""


@dataclass(frozen=True)
class Asked:
    """A query's vectors ``(Q, d)``, the characters behind each (None for markers), and which are of stop words."""

    vectors: Tensor
    spans: list[Span | None]
    stop: list[bool]


@dataclass(frozen=True)
class Match:
    """A token of the query and its best match.

    Attributes:
        query: its characters in the query, None for markers.
        passage: the characters of the passage that the matched vector stands for, widened to whole words; None for markers.
        similarity: their dot product.
        stop: whether the token says little (a stop word, a punctuation mark).
    """

    query: Span | None
    passage: Span | None
    similarity: float
    stop: bool


@dataclass(frozen=True)
class SearchResult:
    """A passage: its id, its document, its text and where that stands in the source.

    Attributes:
        score: MaxSim, the sum over all query tokens, markers included.
        vectors: how many vectors of the passage were compared.
        matches: one for each token of the query.
    """

    id: str
    document: str
    text: str
    span: Span
    score: float
    vectors: int
    metadata: dict[str, Any]
    matches: tuple[Match, ...]

    @property
    def highlights(self) -> list[Span]:
        """The characters matched by tokens that say something, ascending, without overlaps."""
        spans = {m.passage for m in self.matches if m.query and m.passage and not m.stop}
        out: list[Span] = []
        for a, b in sorted(spans):
            if out and a < out[-1][1]:
                out[-1] = out[-1][0], max(b, out[-1][1])
            else:
                out.append((a, b))
        return out


def question(query: Any) -> str:
    """A query that can be searched for.

    Raises:
        ValueError: it is no text, or holds no word.
    """
    if not is_text(query):
        raise ValueError(f"a query is a string of Unicode, not {query!r}")
    if not query.strip():
        raise ValueError("query is empty; pass at least one word")
    return query


def asked(encoded: Encoded) -> Asked:
    """One encoded query."""
    stop = encoded.signals.get("stop", torch.zeros(len(encoded.vectors), dtype=torch.bool))
    return Asked(encoded.vectors, [_span(a, b) for a, b in encoded.spans.tolist()], stop.bool().tolist())


def found(query: Asked, id: str, score: float, vectors: Tensor, metadata: Mapping[str, Any]) -> SearchResult:
    """A hit with its matches; ``metadata`` holds what the library stored with the passage."""
    text, spans = metadata["text"], metadata["spans"]
    best, place = align(query.vectors, vectors)
    matches = []
    for i, (like, at) in enumerate(zip(best.tolist(), place.tolist(), strict=True)):
        span = _span(spans[2 * at], spans[2 * at + 1])
        matches.append(Match(query.spans[i], span and whole(text, span), like, query.stop[i]))
    more = {k: v for k, v in metadata.items() if k not in OWN}
    a, b = metadata["span"]
    return SearchResult(id, metadata["document"], text, (a, b), score, len(vectors), more, tuple(matches))


def with_vectors(index: Index, hits: Sequence[Hit]) -> list[tuple[Hit, Tensor]]:
    """Hits with their vectors, without those whose text is damaged or that were deleted since."""
    stored = []
    for hit in hits:
        if "text" not in hit.metadata:
            continue
        with suppress(KeyError):
            stored.append((hit, index.get(hit.id).vectors))
    return stored


def rank_results(
    query: Asked, stored: Sequence[tuple[Hit, Tensor]], k: int, keep: int | float | None, recipe: Recipe
) -> list[SearchResult]:
    """The first k hits with their matches; with ``keep``, ranked again by so many of their vectors."""
    if keep is None or not stored:
        return [found(query, hit.id, hit.score, vectors, hit.metadata) for hit, vectors in stored[:k]]
    fewer = reduce(_stored(stored), recipe.plain, check(keep, "keep"))
    scores = maxsim(query.vectors, fewer.ragged).tolist()
    order = sorted(range(len(stored)), key=lambda i: (-scores[i], stored[i][0].id))[:k]
    out = []
    for i in order:
        spans = fewer.spans[fewer.offsets[i] : fewer.offsets[i + 1]].flatten().tolist()
        out.append(found(query, stored[i][0].id, scores[i], fewer[i], {**stored[i][0].metadata, "spans": spans}))
    return out


def whole(text: str, span: Span) -> Span:
    """A span widened to the words that it touches."""
    a, b = span
    while a > 0 and LETTERS.fullmatch(text, a - 1, a + 1):
        a -= 1
    while b < len(text) and LETTERS.fullmatch(text, b - 1, b + 1):
        b += 1
    return a, b


def _span(a: int, b: int) -> Span | None:
    return None if a < 0 else (a, b)


def _stored(stored: Sequence[tuple[Hit, Tensor]]) -> Encoded:
    lengths = torch.tensor([len(v) for _, v in stored])
    spans = torch.cat([torch.tensor(hit.metadata["spans"]).view(-1, 2) for hit, _ in stored])
    return Encoded(torch.cat([v for _, v in stored]), ends(lengths), spans)
