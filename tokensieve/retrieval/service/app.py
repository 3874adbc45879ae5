"""The HTTP service: search, add, delete, health, and a page."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import AsyncIterator, Collection
from hashlib import sha256
from importlib.resources import files
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse
from pydantic import ValidationError

from tokensieve.retrieval.index.library import Library
from tokensieve.retrieval.service import wire
from tokensieve.retrieval.service.guard import LOOPBACK, Refused, RequestGuard, bearer, word_errors, worded
from tokensieve.retrieval.sources.texts import Text

BODY = 64 << 20
LINE = 8 << 20
"""Bytes of a body and of a line of it."""
BATCH, HELD = 64, 1 << 20
"""Documents, and characters, that are written together."""
NDJSON = "application/x-ndjson"
Responses = dict[int | str, dict[str, Any]]
ERRORS: Responses = {
    status: {"model": wire.Error, "description": text}
    for status, text in {
        400: "The body cannot be read.", 409: "Another process is writing the index.", 413: "The body is too large.",
        422: "A field is wrong; the error names it.", 503: "The index cannot be used.", 507: "The disk is full.",
    }.items()
}  # fmt: skip
MISSING: Responses = {404: {"model": wire.Error, "description": "There is no such document."}}
LINES = {
    "requestBody": {
        "required": True,
        "description": "One JSON object per line.",
        "content": {
            NDJSON: {"schema": {"type": "array", "minItems": 1, "items": {"$ref": "#/components/schemas/Line"}}}
        },
    }
}
Id = Annotated[str, Query(min_length=1, max_length=wire.NAME, description="A document's id.")]


def application(
    library: Library, token: str | None = None, hosts: Collection[str] | None = LOOPBACK, most: int = BODY
) -> FastAPI:
    """The service of a library.

    Args:
        token: asked for, as a bearer token, by everything but the page and the health check.
        hosts: names that requests may be addressed to; None for any.
        most: bytes of a body.
    """
    needs = [Depends(bearer(token))] if token else []
    refused: Responses = {401: {"model": wire.Error, "description": "The token is missing or wrong."}} if token else {}
    app = FastAPI(
        title="tokensieve", summary="Late-interaction search over fewer vectors.", docs_url=None, redoc_url=None
    )
    app.add_middleware(RequestGuard, most=most, hosts=hosts)
    word_errors(app)
    page, policy = _page()

    @app.head("/", include_in_schema=False)
    @app.get("/", response_class=HTMLResponse)
    async def search_page() -> HTMLResponse:
        """A page to search by."""
        return HTMLResponse(page, headers={"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff"})

    @app.get("/health")
    def health() -> wire.Health:
        """Whether the service answers."""
        library.refresh()
        return wire.Health(status="damaged" if library.index.damaged else "ok", passages=len(library))

    @app.get("/about", dependencies=needs, responses=refused)
    def about() -> wire.About:
        """What is searched."""
        library.refresh()
        recipe, size = library.recipe, library.index.size
        return wire.About(
            model=library.encoder.identity.name, reduction=recipe.reduction, codec=recipe.codec,
            passages=len(library), vectors=size["vectors"], vector_bytes=size["vector_bytes"], bytes=size["bytes"],
        )  # fmt: skip

    @app.post("/search", dependencies=needs, responses={**ERRORS, **refused})
    def search(query: wire.Query) -> wire.Answer:
        """The best passages, each with what the tokens of the query were matched with."""
        return _answers(library, query, [query.query])[0]

    @app.post("/searches", dependencies=needs, responses={**ERRORS, **refused})
    def searches(queries: wire.Queries) -> wire.Answers:
        """The best passages for each of several queries."""
        return wire.Answers(answers=_answers(library, queries, queries.query))

    @app.post("/documents", dependencies=needs, responses={**ERRORS, **refused}, openapi_extra=LINES)
    async def add(request: Request) -> wire.Written:
        """Add documents, or replace those of the same id, while they arrive; those before a wrong line are kept."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != NDJSON:
            raise Refused(422, f"it must be {NDJSON}", "content-type")
        written = total = 0
        try:
            async for batch in _batches(request):
                written += await run_in_threadpool(library.put, batch)
                total += len(batch)
        finally:
            await run_in_threadpool(library.close)
        if not total:
            raise Refused(422, "it holds no document", "body")
        return wire.Written(written=written, unchanged=total - written, passages=len(library))

    @app.get("/documents", dependencies=needs, responses={**ERRORS, **MISSING, **refused})
    def document(id: Id) -> wire.Document:
        """A document's passages."""
        passages = library.get(id)
        if not passages:
            raise Refused(404, f"there is no document {id!r}", "id")
        return wire.Document(id=id, passages=[wire.Passage(**p) for p in passages])

    @app.delete("/documents", dependencies=needs, responses={**ERRORS, **MISSING, **refused})
    def delete(id: Id) -> wire.Deleted:
        """Delete a document."""
        try:
            gone = library.remove([id])
        finally:
            library.close()
        if not gone:
            raise Refused(404, f"there is no document {id!r}", "id")
        return wire.Deleted(deleted=gone)

    _describe(app)
    return app


def _answers(library: Library, how: wire.Query, queries: list[str]) -> list[wire.Answer]:
    start, conditions = time.perf_counter(), None if how.where is None else how.where.root
    try:
        found = library.search(
            queries, how.k, where=conditions, keep=how.keep, fuse=how.fuse, offset=how.offset, min_score=how.min_score,
            per_document=how.per_document,
        )  # fmt: skip
    except ValueError as problem:
        raise Refused(422, str(problem), "query") from problem
    spent = 1e3 * (time.perf_counter() - start)
    return [
        wire.Answer(
            hits=[wire.hit(query, f) for f in hits],
            passages=len(library),
            milliseconds=spent,
            damaged=library.index.damaged,
            notes=list(library.notes(query, conditions)),
        )
        for query, hits in zip(queries, found, strict=True)
    ]


async def _batches(request: Request) -> AsyncIterator[list[Text]]:
    """Documents of a streamed body, some at a time."""
    batch: list[Text] = []
    number = held = 0
    async for line in _lines(request):
        number += 1
        if not line.strip():
            continue
        try:
            batch.append(_text(line, number))
        except Refused:
            if batch:
                yield batch
            raise
        held += len(batch[-1].source)
        if len(batch) == BATCH or held > HELD:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


async def _lines(request: Request) -> AsyncIterator[bytes]:
    rest = b""
    async for chunk in request.stream():
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line
        if len(rest) > LINE:
            raise Refused(413, f"a line is longer than {LINE:,} bytes", "body")
    yield rest


def _text(line: bytes, number: int) -> Text:
    try:
        read = wire.Line.model_validate_json(line)
        return Text(read.id, read.text, read.metadata)
    except ValidationError as error:
        problem, field = worded(error.errors()[0])
        raise Refused(422, problem, field, number) from None


def _describe(app: FastAPI) -> None:
    """Put the lines of an ingest, which no signature names, into the schema."""
    schema = app.openapi()
    schema["components"]["schemas"]["Line"] = wire.Line.model_json_schema(ref_template="#/components/schemas/{model}")


def _page() -> tuple[str, str]:
    """The page, and a policy by which it may run its own script, ask this service, and load nothing."""
    text = files("tokensieve.retrieval.service").joinpath("page.html").read_text(encoding="utf-8")
    script = re.search(r"<script>(.*?)</script>", text, re.S)
    assert script is not None
    digest = base64.b64encode(sha256(script.group(1).encode()).digest()).decode()
    return text, (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
