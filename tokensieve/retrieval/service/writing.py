"""Writing: documents put in over HTTP, by lines or as files, and deleted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import PurePosixPath
from typing import Annotated, Any

import anyio
from fastapi import FastAPI, Query, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import ValidationError

from tokensieve.retrieval.index.library import Library
from tokensieve.retrieval.service import wire
from tokensieve.retrieval.service.gather import Gatherer
from tokensieve.retrieval.service.guard import Refused, Responses, worded
from tokensieve.retrieval.sources.documents import NoText
from tokensieve.retrieval.sources.folder import text_of_file
from tokensieve.retrieval.sources.texts import Text

LINE = 8 << 20
"""Bytes of a line of a body."""
BATCH, HELD = 64, 1 << 20
"""Documents, and characters, that are written together."""
NDJSON = "application/x-ndjson"
LINES = {
    "requestBody": {
        "required": True,
        "description": "One JSON object per line.",
        "content": {
            NDJSON: {
                "schema": {"type": "array", "minItems": 1, "items": {"$ref": "#/components/schemas/Line"}},
                "example": [{"id": "note-7", "text": "Rivers flow to the sea.", "metadata": {"lang": "en"}}],
            }
        },
    }
}
FILE = {
    "requestBody": {
        "required": True,
        "description": "The file's bytes, as they are.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
Id = Annotated[str, Query(min_length=1, max_length=wire.NAME, description="A document's id.", examples=["note-7"])]


def add_writing(
    app: FastAPI, library: Library, gatherer: Gatherer, needs: Sequence[Any], errors: Responses, missing: Responses
) -> None:
    """Put the writing routes into a service.

    Args:
        needs: what is asked of who writes.
        errors, missing: what else may be answered, and what where a document is not there.
    """
    # One request writes at a time; the others wait without holding a thread.
    turn = anyio.Lock()

    async def put(batch: list[Text]) -> int:
        async with turn:
            try:
                return await run_in_threadpool(library.put, batch, gatherer.give_way)
            finally:
                await run_in_threadpool(library.close)

    @app.post("/documents", dependencies=needs, responses=errors, openapi_extra=LINES)
    async def add(request: Request) -> wire.Written:
        """Add documents, or replace those of the same id, while they arrive; those before a wrong line are kept."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != NDJSON:
            raise Refused(422, f"it must be {NDJSON}", "content-type")
        written = total = 0
        async for batch in _batches(request):
            written += await put(batch)
            total += len(batch)
        if not total:
            raise Refused(422, "it holds no document", "body")
        return wire.Written(written=written, unchanged=total - written, passages=len(library))

    @app.post("/files", dependencies=needs, responses=errors, openapi_extra=FILE)
    async def upload(id: Id, request: Request) -> wire.Written:
        """Add a document from a file that `tokensieve index` could read (text, HTML, a notebook, code, PDF, ...), or replace that
        of the same id. The end of the id (.md, .py) says of what kind text is."""
        data = await request.body()
        try:
            text = await run_in_threadpool(text_of_file, data, id, PurePosixPath(id).suffix)
        except NoText as problem:
            raise Refused(422, f"{id}: {problem}", "body") from problem
        except Exception as problem:  # of a reader
            raise Refused(422, f"{id} cannot be read ({type(problem).__name__}: {problem})"[:300], "body") from problem
        written = await put([text])
        return wire.Written(written=written, unchanged=1 - written, passages=len(library))

    @app.delete("/documents", dependencies=needs, responses={**errors, **missing})
    async def delete(id: Id) -> wire.Deleted:
        """Delete a document."""
        async with turn:
            try:
                gone = await run_in_threadpool(library.remove, [id])
            finally:
                await run_in_threadpool(library.close)
        if not gone:
            raise Refused(404, f"there is no document {id!r}", "id")
        return wire.Deleted(deleted=gone)

    _describe(app)


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
