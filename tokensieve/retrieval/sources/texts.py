"""Texts: documents before they are encoded, and the passages they are cut into."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import Any

from tokensieve.retrieval.sources import noise
from tokensieve.retrieval.sources.layout import Layout, Span
from tokensieve.retrieval.sources.passages import MOST, Passage, above, cut, is_text, overlapping
from tokensieve.retrieval.sources.readers import read

CONTEXT = 160
"""Characters of what stands above a passage, at most."""
TOGETHER = 256
"""Passages looked at together: what tokens are held of a long text at once."""
Sizes = Callable[[list[str]], list[int]]
"""How many tokens each text has."""


@dataclass(frozen=True)
class Piece:
    """A passage of a text.

    Attributes:
        span: the characters of its source that it stands for.
        context: what stands above it, headings or the head of its table; encoded with it, and no part of its text.
        place: where it stands, in words: "line 12", "cell 3", "page 2".
        gap: what is between the passage before and this one, where the source cannot be read again; "" elsewhere.
    """

    text: str
    span: Span
    context: str = ""
    place: str = ""
    gap: str = ""

    @property
    def said(self) -> str:
        """What is encoded."""
        return f"{self.context}\n{self.text}" if self.context else self.text


@dataclass(frozen=True)
class Text:
    """A document before it is encoded.

    Attributes:
        name: its id.
        metadata: JSON values, for filters.
        reader: how the source is read, a name of ``tokensieve.retrieval.sources.readers.READERS``.
        file: whether it is of a file, and goes when that goes.
        extracted: whether the source was taken out of a file that is no text, so that only an index holds it.
    """

    name: str
    source: str
    metadata: dict[str, Any] = field(default_factory=dict)
    reader: str = "plain"
    file: bool = False
    extracted: bool = False

    def __post_init__(self) -> None:
        for name in ("name", "source"):
            if not is_text(getattr(self, name)):
                raise ValueError(f"{name} of a text is a string of Unicode, not {getattr(self, name)!r}")
        if not self.name:
            raise ValueError("name of a text is empty; it is what the text is found and replaced by")

    @property
    def digest(self) -> str:
        return sha256(
            repr((self.source, sorted(self.metadata.items(), key=lambda item: str(item[0])))).encode(errors="replace")
        ).hexdigest()[:16]

    @property
    def plain(self) -> str:
        """What passages are cut from."""
        return self.layout.text

    @cached_property
    def layout(self) -> Layout:
        """Its text and the parts of it."""
        return noise.without(read(self.reader, self.source))

    def pieces(self, sizes: Sizes | None = None, limit: int = 0, overlap: int = 0) -> list[Piece]:
        """Its passages in their order.

        Args:
            sizes: how many tokens texts have; passages of more than ``limit`` with what stands above them are cut smaller.
            overlap: characters of the passage before that a passage begins with, at most.
        """
        layout = self.layout
        spans = cut(layout)
        if sizes is not None:
            parts = [spans[i : i + TOGETHER] for i in range(0, len(spans), TOGETHER)]
            spans = [s for part in parts for s in _fitting(layout, part, sizes, limit)]
        if overlap:
            wider = overlapping(layout, spans, overlap)
            long = sizes([p.said for p in self._made(wider)]) if sizes is not None else [0] * len(wider)
            spans = [w if size <= limit or sizes is None else s for s, w, size in zip(spans, wider, long, strict=True)]
        return self._made(spans)

    def _made(self, spans: list[Span]) -> list[Piece]:
        layout, out, before, line, seen = self.layout, [], 0, 1, 0
        for passage in above(layout, spans, CONTEXT):
            a, b = passage.span
            span = layout.source((a, b))
            if span[0] >= seen:
                line += self.source.count("\n", seen, span[0])
                seen = span[0]
            place = passage.place or f"line {line}"
            gap = layout.text[before:a] if self.extracted else ""
            out.append(Piece(layout.text[a:b], span, passage.context, place, gap))
            before = b
        return out


def _fitting(layout: Layout, spans: list[Span], sizes: Sizes, limit: int) -> list[Span]:
    """Spans cut anew until none has more tokens than ``limit``."""
    most = dict.fromkeys(spans, MOST)
    while True:
        made = list(above(layout, spans, CONTEXT))
        counts = sizes([_said(layout, passage) for passage in made])
        if not any(n > limit and b - a > 1 for n, (a, b) in zip(counts, spans, strict=True)):
            return spans
        out: list[Span] = []
        for n, (a, b) in zip(counts, spans, strict=True):
            if n <= limit or b - a == 1:
                out.append((a, b))
                continue
            fewer = max(min(int((b - a) * limit / n * 0.9), most[(a, b)] * 3 // 4, b - a - 1), 1)
            found = cut(layout, fewer, (a, b))
            most |= dict.fromkeys(found, fewer)
            out += found
        spans = out


def _said(layout: Layout, passage: Passage) -> str:
    text = layout.text[slice(*passage.span)]
    return f"{passage.context}\n{text}" if passage.context else text
