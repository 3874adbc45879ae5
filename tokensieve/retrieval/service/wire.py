"""Wire: what requests and answers look like."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, RootModel, field_validator, model_validator

from tokensieve.retrieval.index import marks
from tokensieve.retrieval.index.filters import JOINS, OPERATORS, check
from tokensieve.retrieval.index.results import SearchResult

QUERY, MANY, MOST, TEXT, NAME = 10_000, 64, 100, 1_000_000, 512
"""Characters of a query, queries of a request, passages of an answer, characters of a document and of its id."""
WORDS = r"[^\s\x1c-\x1f\x85\uFEFF]"
"""At least one of it must be there: what is blank to one dialect of patterns or another, does not count."""

FREE: Any = {"propertyNames": {"not": {"anyOf": [{"enum": sorted(marks.OWN)}, {"pattern": "^\\$"}]}}}
Strict = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
Span = tuple[int, int]
Name = Annotated[str, Field(min_length=1, max_length=NAME, description="A document's id.")]


SELF: Any = {"$ref": "#/components/schemas/Conditions"}
LIMITS: Any = {name: {} for name in OPERATORS} | {
    "in": {"type": "array"},
    "prefix": {"type": "string"},
    "exists": {"type": "boolean"},
}
CONDITION: Any = {
    "anyOf": [
        {"type": ["string", "number", "boolean", "null", "array"]},
        {"type": "object", "properties": LIMITS, "additionalProperties": False},
    ]
}
JOINED: Any = {"type": "array", "minItems": 1, "items": SELF}


class Conditions(RootModel[dict[str, JsonValue]]):
    """Conditions on metadata: ``{"suffix": ".md"}``, ``{"year": {"ge": 2020}}``, ``{"$or": [{...}, {...}]}``."""

    model_config = ConfigDict(
        strict=True,
        json_schema_extra={
            "propertyNames": {"anyOf": [{"enum": list(JOINS)}, {"not": {"pattern": "^\\$"}}]},
            "properties": {"$or": JOINED, "$and": JOINED, "$not": SELF},
            "additionalProperties": CONDITION,
        },
    )

    @model_validator(mode="after")
    def _known(self) -> Conditions:
        check(self.root)
        return self


ALONE: Any = {
    "not": {
        "required": ["keep"],
        "properties": {"keep": {"type": "number"}},
        "anyOf": [
            {"required": ["fuse"], "properties": {"fuse": {"not": {"const": "none"}}}},
            {"required": ["offset"], "properties": {"offset": {"not": {"const": 0}}}},
            {"required": ["per_document"], "properties": {"per_document": {"const": True}}},
            {"required": ["cross"], "properties": {"cross": {"const": True}}},
        ],
    }
}
"""``keep`` ranks by itself: it stands beside none of these."""


class Query(BaseModel):
    """A search."""

    model_config = ConfigDict(**Strict, json_schema_extra=ALONE)
    query: str = Field(min_length=1, max_length=QUERY, pattern=WORDS, examples=["how do I read a file line by line"])
    k: int = Field(10, ge=1, le=MOST, description="How many passages.")
    where: Conditions | None = Field(None, examples=[{"suffix": ".md"}])
    fuse: Literal["none", "rrf"] | Annotated[float, Field(ge=0, le=1)] = Field(
        "none", description="How BM25 counts: not at all, by ranks, or by a share of the score."
    )
    offset: int = Field(0, ge=0, le=10_000, description="How many of the best are passed over.")
    min_score: float | None = Field(None, description="Leave out passages of a lower MaxSim.")
    per_document: bool = Field(False, description="Only the best passage of each document.")
    cross: bool = Field(False, description="Let the service's cross-encoder rank the 50 best again.")
    keep: float | None = Field(
        None, gt=0, le=1, description="Rank the 50 best passages again by this share of their stored vectors."
    )

    @field_validator("k", "offset", mode="before")
    @classmethod
    def _whole(cls, value: Any) -> Any:
        """In JSON 10.0 is an integer."""
        return int(value) if isinstance(value, float) and value.is_integer() else value


class Queries(Query):
    """Several searches of one kind."""

    query: list[Annotated[str, Field(min_length=1, max_length=QUERY, pattern=WORDS)]] = Field(  # type: ignore[assignment]
        min_length=1, max_length=MANY, description="The queries."
    )


class Line(BaseModel):
    """A document to add: one line of the body."""

    model_config = Strict
    id: Name
    text: str = Field(min_length=1, max_length=TEXT, pattern=WORDS)
    metadata: dict[str, JsonValue] = Field(default_factory=dict, max_length=32, json_schema_extra=FREE)

    @field_validator("metadata")
    @classmethod
    def _free(cls, value: dict[str, JsonValue]) -> dict[str, JsonValue]:
        own = marks.claimed(value)
        if own:
            raise ValueError(f"{own!r} is a field of the library's own; rename it")
        json.dumps(value, allow_nan=False)
        return value


class Match(BaseModel):
    """A token of the query (None: a marker of the encoder) and where its best match stands in the passage (None: a marker)."""

    token: str | None
    query: Span | None
    passage: Span | None
    similarity: float
    stop: bool
    context: Span | None


class Hit(BaseModel):
    """A passage found. ``span`` is of its source, spans of ``highlights`` and ``matches`` are of ``text``."""

    id: str
    document: str
    text: str
    span: Span
    score: float
    fused: float | None
    cross: float | None
    vectors: int
    context: str
    place: str
    metadata: dict[str, Any]
    highlights: list[Span]
    matches: list[Match]


class Answer(BaseModel):
    """Hits, best first. ``damaged`` names parts of the index that cannot be read; all others were searched. ``notes`` say what of
    the query was not read: an end that was cut off, words that the encoder does not know."""

    hits: list[Hit]
    passages: int
    milliseconds: float
    damaged: list[str]
    notes: list[str]


class Answers(BaseModel):
    """An answer for each query, in their order."""

    answers: list[Answer]


class Passage(BaseModel):
    """A stored passage."""

    id: str
    text: str
    span: Span
    context: str
    place: str
    metadata: dict[str, Any]


class Document(BaseModel):
    """A stored document, or some of its passages, and how many it has."""

    id: str
    of: int
    passages: list[Passage]


class Written(BaseModel):
    """What an ingest did: documents written, those that were there unchanged, and the passages now held."""

    written: int
    unchanged: int
    passages: int


class Deleted(BaseModel):
    """How many documents were deleted."""

    deleted: int


class Health(BaseModel):
    """``damaged`` where parts of the index cannot be read; the rest is searched."""

    status: Literal["ok", "damaged"]
    passages: int


class About(BaseModel):
    """How vectors were made, how many there are, and whether a cross-encoder can rank again."""

    model: str
    reduction: str
    codec: str
    passages: int
    vectors: int
    vector_bytes: int
    bytes: int
    cross: bool


class Fields(BaseModel):
    """Fields of metadata, and some values of each, the most frequent first."""

    fields: dict[str, list[str | bool | int | float]]


class Problem(BaseModel):
    """What was wrong: with which field, in which line of an ingest."""

    field: str | None
    problem: str
    line: int | None = None


class Error(BaseModel):
    """The body of every answer that is no success."""

    error: Problem


def hit(query: str, found: SearchResult) -> Hit:
    """A found passage as it is sent."""
    matches = [
        Match(
            token=query[slice(*m.query)] if m.query else None,
            query=m.query, passage=m.passage, similarity=m.similarity, stop=m.stop, context=m.context,
        )
        for m in found.matches
    ]  # fmt: skip
    return Hit(
        id=found.id, document=found.document, text=found.text, span=found.span, score=found.score, fused=found.fused,
        cross=found.cross, context=found.context, place=found.place, vectors=found.vectors, metadata=found.metadata,
        highlights=found.highlights, matches=matches,
    )  # fmt: skip
