"""Found: a passage that answers a query, and which of its characters each token of the query was matched with."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tokensieve.parts.budget import check
from tokensieve.retrieval.encoders.encoded import Encoded, Encoder, ends
from tokensieve.retrieval.encoders.reduce import reduce
from tokensieve.retrieval.index import marks
from tokensieve.retrieval.index.index import Index
from tokensieve.retrieval.index.recipe import Recipe
from tokensieve.retrieval.index.search import Hit
from tokensieve.retrieval.scoring.maxsim import align, maxsim
from tokensieve.retrieval.sources.passages import Span, is_text

STRANGE = 0.2
"""The share of tokens without a word from which on that is said."""
CANDIDATES = 50
"""Passages that are ranked again where fewer vectors are asked for."""
LETTERS = re.compile(r"[^\W_\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]{2}")
"""Two of one word; Chinese and Japanese put no blanks between theirs, which stay as the encoder has cut them."""


@dataclass(frozen=True)
class Asked:
    """A query's vectors ``(Q, d)``, the characters behind each (None for markers), which are of stop words, and what of the query
    was not read, in words."""

    vectors: Tensor
    spans: list[Span | None]
    stop: list[bool]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Match:
    """A token of the query and its best match.

    Attributes:
        query: its characters in the query, None for markers.
        passage: the characters of the passage that the matched vector stands for, widened to whole words; None for markers.
        similarity: their dot product.
        stop: whether the token says little (a stop word, a punctuation mark).
        context: the characters of what stands above the passage, where the matched vector is of that.
    """

    query: Span | None
    passage: Span | None
    similarity: float
    stop: bool
    context: Span | None = None


@dataclass(frozen=True)
class SearchResult:
    """A passage: its id, its document, its text and where that stands in the source.

    Attributes:
        score: MaxSim, the sum over all query tokens, markers included.
        vectors: how many vectors of the passage were compared.
        matches: one for each token of the query.
        context: what stands above the passage and was encoded with it: headings, or the head of its table.
        place: where it stands in its document, in words: "line 12", "cell 3", "page 2", "slide 4".
        notes: what of the query was not read, in words; the same for all results.
        fused: what it was ranked by, where words counted.
        cross: what it was ranked by, where a cross-encoder read it.
    """

    id: str
    document: str
    text: str
    span: Span
    score: float
    vectors: int
    metadata: dict[str, Any]
    matches: tuple[Match, ...]
    context: str = ""
    place: str = ""
    notes: tuple[str, ...] = ()
    fused: float | None = None
    cross: float | None = None

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


def notes(encoder: Encoder, query: str) -> tuple[str, ...]:
    """What of a query an encoder does not read, in words."""
    reader = getattr(encoder, "reader", None)
    if reader is None:
        return ()
    (size,), most = reader.sizes([query], True), reader.reading.query_length
    said = []
    if size.tokens > most:
        spans = [b for _, b in reader.read([query], True)[0].spans]
        said.append(
            f"the query was cut: {encoder.identity.name} reads {most} of its {size.tokens:,} tokens, "
            f"up to character {max(spans):,} of {len(query):,}"
        )
    if size.unknown >= STRANGE * size.tokens:
        said.append(
            f"{encoder.identity.name} has no word for {size.unknown} of the query's {size.tokens:,} tokens; "
            "an encoder for its language finds more (--encoder)"
        )
    return tuple(said)


def asked(encoded: Encoded, notes: tuple[str, ...] = ()) -> Asked:
    """One encoded query."""
    stop = encoded.signals.get("stop", torch.zeros(len(encoded.vectors), dtype=torch.bool))
    return Asked(encoded.vectors, [_span(a, b) for a, b in encoded.spans.tolist()], stop.bool().tolist(), notes)


def found(query: Asked, id: str, score: float, vectors: Tensor, metadata: Mapping[str, Any]) -> SearchResult:
    """A hit with its matches; ``metadata`` holds what the library stored with the passage."""
    text, spans, context = metadata["text"], metadata["spans"], metadata.get(marks.CONTEXT, "")
    best, place = align(query.vectors, vectors)
    matches = []
    for i, (like, at) in enumerate(zip(best.tolist(), place.tolist(), strict=True)):
        a, b = spans[2 * at], spans[2 * at + 1]
        span = _span(a, b)
        over = (a + len(context) + 1, b + len(context) + 1) if a < 0 and a != b else None
        matches.append(Match(query.spans[i], span and whole(text, span), like, query.stop[i], over))
    a, b = metadata["span"]
    about = metadata.get(marks.CONTEXT, ""), metadata.get(marks.PLACE, "")
    return SearchResult(
        id,
        metadata["document"],
        text,
        (a, b),
        score,
        len(vectors),
        marks.free(metadata),
        tuple(matches),
        *about,
        query.notes,
    )


def sound(metadata: Mapping[str, Any], vectors: int) -> bool:
    """Whether metadata are what a library writes with so many vectors; an index may come from a stranger."""
    text, span, spans = (metadata.get(k) for k in ("text", "span", "spans"))
    if not isinstance(text, str) or not isinstance(metadata.get("document"), str):
        return False
    if not isinstance(span, list) or not isinstance(spans, list) or len(span) != 2 or len(spans) != 2 * vectors:
        return False
    said = metadata.get(marks.CONTEXT, ""), metadata.get(marks.PLACE, "")
    return (
        all(type(n) is int and n <= len(text) for n in spans)
        and all(type(n) is int for n in span)
        and all(isinstance(x, str) for x in said)
    )


def firsts(ranked: Callable[[int], list[Hit]], k: int) -> list[Hit]:
    """The best passages of the k best documents; ``ranked`` gives so many of the best passages."""
    most = 4 * k
    while True:
        hits = ranked(most)
        best: dict[str, Hit] = {}
        for hit in hits:
            best.setdefault(hit.id.rpartition("#")[0] or hit.id, hit)
        if len(best) >= k or len(hits) < most:
            return list(best.values())[:k]
        most *= 2


def with_vectors(index: Index, hits: Sequence[Hit]) -> list[tuple[Hit, Tensor]]:
    """Hits with their metadata and vectors, without those whose text is damaged or that were deleted since."""
    documents = index.held([hit.id for hit in hits])
    return [
        (replace(hit, metadata=dict(document.metadata)), document.vectors)
        for hit, document in zip(hits, documents, strict=True)
        if document is not None and sound(document.metadata, len(document.vectors))
    ]


def rank_results(
    query: Asked, stored: Sequence[tuple[Hit, Tensor]], k: int, keep: int | float | None, recipe: Recipe
) -> list[SearchResult]:
    """The first k hits with their matches; with ``keep``, ranked again by so many of their vectors."""
    if keep is None or not stored:
        return [replace(found(query, h.id, h.score, v, h.metadata), fused=h.fused) for h, v in stored[:k]]
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
