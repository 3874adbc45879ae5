"""The HTTP service: search, add, delete, health, metrics, and a page."""

from __future__ import annotations

import asyncio
import base64
import re
import time
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from hashlib import sha256
from importlib.resources import files
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Response
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import HTMLResponse, PlainTextResponse

from tokensieve.retrieval.encoders.cross import Scorer
from tokensieve.retrieval.index.library import Library
from tokensieve.retrieval.index.searching import Answered, Searching
from tokensieve.retrieval.service import wire
from tokensieve.retrieval.service.gather import Busy, Gatherer
from tokensieve.retrieval.service.guard import LOOPBACK, Refused, RequestGuard, Responses, bearer, word_errors
from tokensieve.retrieval.service.limits import Limits
from tokensieve.retrieval.service.watch import Watch, Watched
from tokensieve.retrieval.service.writing import Id, add_writing

SHARDED = "a collection in shards is only read; `tokensieve index` brings it up to date"
NO_CROSS = (
    "this service has no cross-encoder, and nothing was ranked again; `tokensieve serve --cross-encoder` gives it one"
)
ERRORS: Responses = {
    status: {"model": wire.Error, "description": text}
    for status, text in {
        400: "The body cannot be read.", 408: "The body stopped arriving.", 409: "Another process is writing the index.",
        413: "The body is too large.", 422: "A field is wrong; the error names it.", 429: "Too many requests wait.",
        503: "The index cannot be used.", 504: "The search took too long.", 507: "The disk is full.",
    }.items()
}  # fmt: skip
MISSING: Responses = {404: {"model": wire.Error, "description": "There is no such document."}}
UNKNOWN: Responses = {401: {"model": wire.Error, "description": "The token is missing or wrong."}}
FORBIDDEN: Responses = {403: {"model": wire.Error, "description": "The token only reads."}}


def application(
    library: Searching, token: str | None = None, hosts: Collection[str] | None = LOOPBACK, *,
    reading: str | None = None, origins: Sequence[str] = (), limits: Limits | None = None, cross: Scorer | None = None,
) -> FastAPI:  # fmt: skip
    """The service of a library, or of a collection in shards, which is only read.

    Args:
        token: asked for, as a bearer token, by everything but the page and the health check.
        hosts: names that requests may be addressed to; None for any.
        reading: another token, which opens all that changes nothing.
        origins: other sites whose pages may ask, such as ``https://example.org``.
        cross: a cross-encoder that ranks again for those who ask for it.
    """
    limits = limits or Limits()
    if token is None and reading is not None:
        raise ValueError("a token that only reads stands beside one that may write; give both")
    odd = [o for o in origins if not re.fullmatch(r"https?://[^/*\s]+", o)]
    if odd:
        raise ValueError(f"origin {odd[0]!r}: name a site as a browser does, such as https://example.org")
    reads = [Depends(bearer(token, reading))] if token else []
    writes = [Depends(bearer(token, reading, writing=True))] if token else []
    refused: Responses = UNKNOWN if token else {}
    gatherer = Gatherer(library, limits)
    watch = Watch(library, gatherer)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        gatherer.close()

    app = FastAPI(
        title="tokensieve", summary="Late-interaction search over fewer vectors.", docs_url=None, redoc_url=None,
        lifespan=lifespan,
    )  # fmt: skip
    if origins:
        own = ["authorization", "content-type", "x-request-id"]
        app.add_middleware(
            CORSMiddleware, allow_origins=list(origins), allow_methods=["GET", "POST", "DELETE"], allow_headers=own,
            expose_headers=["x-request-id"],
        )  # fmt: skip
    app.add_middleware(RequestGuard, limits=limits, hosts=hosts)
    app.add_middleware(Watched, watch=watch)
    word_errors(app, None if isinstance(library, Library) else SHARDED)
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
        return wire.Health(status="damaged" if library.damaged else "ok", passages=len(library))

    @app.get("/about", dependencies=reads, responses=refused)
    def about() -> wire.About:
        """What is searched."""
        library.refresh()
        recipe, size = library.recipe, library.size
        return wire.About(
            model=library.encoder.identity.name, reduction=recipe.reduction, codec=recipe.codec,
            passages=len(library), vectors=size["vectors"], vector_bytes=size["vector_bytes"], bytes=size["bytes"],
            cross=cross is not None,
        )  # fmt: skip

    @app.get("/fields", dependencies=reads, responses=refused)
    def fields() -> wire.Fields:
        """What conditions may speak of."""
        library.refresh()
        return wire.Fields(fields=library.fields())

    @app.get("/metrics", dependencies=reads, responses=refused, response_class=PlainTextResponse)
    def metrics() -> Response:
        """Counts and times in Prometheus' form; of several workers those of the one that answers."""
        return Response(watch.text(), media_type="text/plain; version=1.0.0; charset=utf-8")

    async def answers(how: wire.Query, queries: list[str]) -> list[wire.Answer]:
        start = time.perf_counter()
        said = [NO_CROSS] if how.cross and cross is None else []
        try:
            asked = gatherer.ask(
                queries, k=how.k, where=None if how.where is None else how.where.root, keep=how.keep, fuse=how.fuse,
                offset=how.offset, min_score=how.min_score, per_document=how.per_document,
                cross=cross if how.cross else None,
            )  # fmt: skip
            found: list[Answered] = await asyncio.wait_for(asyncio.wrap_future(asked), limits.seconds)
        except Busy:
            raise Refused(429, "too many searches wait; ask again in a second", after=1) from None
        except TimeoutError:
            raise Refused(504, f"the search took more than {limits.seconds:g} seconds; ask again") from None
        except ValueError as problem:
            raise Refused(422, str(problem), "query") from problem
        spent, damaged, count = 1e3 * (time.perf_counter() - start), library.damaged, len(library)
        return [
            wire.Answer(
                hits=[wire.hit(query, f) for f in one.results], passages=count, milliseconds=spent, damaged=damaged,
                notes=[*one.notes, *said],
            )
            for query, one in zip(queries, found, strict=True)
        ]  # fmt: skip

    # Answers are written as they are: what this service made itself need not be checked again.
    @app.post("/search", dependencies=reads, responses={**ERRORS, **refused}, response_model=wire.Answer)
    async def search(query: wire.Query) -> Response:
        """The best passages, each with what the tokens of the query were matched with."""
        return _json((await answers(query, [query.query]))[0])

    @app.post("/searches", dependencies=reads, responses={**ERRORS, **refused}, response_model=wire.Answers)
    async def searches(queries: wire.Queries) -> Response:
        """The best passages for each of several queries."""
        return _json(wire.Answers(answers=await answers(queries, queries.query)))

    @app.get("/documents", dependencies=reads, responses={**ERRORS, **MISSING, **refused})
    def document(
        id: Id,
        first: Annotated[int, Query(ge=0, le=1 << 30, description="The number of the first passage.")] = 0,
        count: Annotated[int, Query(ge=1, le=1000, description="How many passages.")] = 1000,
    ) -> wire.Document:
        """A document's passages."""
        passages = library.get(id)
        if not passages:
            raise Refused(404, f"there is no document {id!r}", "id")
        return wire.Document(
            id=id, of=len(passages), passages=[wire.Passage(**p) for p in passages[first : first + count]]
        )

    if isinstance(library, Library):
        add_writing(app, library, gatherer, writes, {**ERRORS, **refused, **(FORBIDDEN if token else {})}, MISSING)
    return app


def _json(answer: Any) -> Response:
    return Response(answer.model_dump_json(), media_type="application/json")


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
