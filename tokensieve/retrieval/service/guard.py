"""Guard: what is refused before it is read, and how refusals are worded."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Collection
from typing import Any

import anyio
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.routing import Match

from tokensieve.retrieval.errors import IndexProblem, Locked
from tokensieve.retrieval.service.limits import Limits
from tokensieve.retrieval.service.wire import Error, Problem

Responses = dict[int | str, dict[str, Any]]
"""What a route may answer besides, for its description."""
TYPES = ("str", "bool", "int", "float")
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class Refused(HTTPException):
    """A request that cannot be met, by field and line, and the seconds after which it may be."""

    def __init__(
        self, status: int, problem: str, field: str | None = None, line: int | None = None, after: int | None = None
    ) -> None:
        super().__init__(status, problem, None if after is None else {"Retry-After": str(after)})
        self.field, self.line = field, line


def answer(
    status: int, problem: str, field: str | None = None, line: int | None = None, **headers: str
) -> JSONResponse:
    """An error as JSON."""
    body = Error(error=Problem(field=field, problem=problem, line=line)).model_dump(exclude_none=False)
    return JSONResponse(body, status, headers or None)


class RequestGuard:
    """Refuses what is more than the limits say (bodies that are too large, announced or streamed, or stop arriving; too many
    requests at once), and requests for other hosts than ``hosts``.

    The latter keeps a page of another site, whose name was made to point here, from reading a service on this machine.
    """

    def __init__(self, app: Any, limits: Limits, hosts: Collection[str] | None) -> None:
        self.app, self.limits, self.hosts = app, limits, hosts
        self._active = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        if self.hosts is not None and _name(host) not in self.hosts:
            return await answer(421, f"this service does not answer for {host!r}", "host")(scope, receive, send)
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.limits.body:
            return await answer(413, self._limit, "body", connection="close")(scope, receive, send)
        if self._active >= self.limits.requests and scope["path"] != "/health":
            busy = f"{self._active} requests are being answered; ask again in a second"
            return await answer(429, busy, None, None, **{"retry-after": "1"})(scope, receive, send)
        seen, more = 0, True

        async def counted() -> Any:
            nonlocal seen, more
            with anyio.move_on_after(self.limits.seconds if more else None) as wait:
                message = await receive()
            if wait.cancelled_caught:
                raise Refused(408, f"nothing of the body arrived for {self.limits.seconds:g} seconds", "body")
            seen, more = seen + len(message.get("body", b"")), message.get("more_body", False)
            if seen > self.limits.body:
                raise Refused(413, self._limit, "body")
            return message

        self._active += 1
        try:
            return await self.app(scope, counted, send)
        finally:
            self._active -= 1

    @property
    def _limit(self) -> str:
        return f"the body is larger than {self.limits.body:,} bytes; send it in parts"


def _name(host: str) -> str:
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0].lower()


def bearer(token: str, reading: str | None = None, writing: bool = False) -> Callable[..., Awaitable[None]]:
    """A dependency that asks for a token.

    Args:
        reading: one that opens what changes nothing.
        writing: something is changed.
    """
    scheme = HTTPBearer(auto_error=False)

    async def checked(given: HTTPAuthorizationCredentials | None = Depends(scheme)) -> None:  # noqa: B008
        if given is not None and _same(given.credentials, token):
            return
        if given is None or reading is None or not _same(given.credentials, reading):
            raise HTTPException(401, "a bearer token is needed", {"WWW-Authenticate": "Bearer"})
        if writing:
            raise HTTPException(403, "this token only reads; another one may write")

    return checked


def _same(given: str, token: str) -> bool:
    return secrets.compare_digest(given.encode(), token.encode())


def word_errors(app: FastAPI, only_read: str | None = None) -> None:
    """Every error leaves as :class:`Error`; ``only_read`` is why what would change something is not there."""

    @app.exception_handler(AnyHTTPException)
    async def _refused(request: Request, error: AnyHTTPException) -> JSONResponse:
        headers, said = dict(error.headers or {}), str(error.detail)
        if error.status_code == 405:
            headers["Allow"] = ", ".join(sorted(_methods(app, request)))
            said = only_read or said
        field, line = getattr(error, "field", None), getattr(error, "line", None)
        return answer(error.status_code, said, field, line, **headers)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return answer(422, *worded(error.errors()[0]))

    @app.exception_handler(ValueError)
    async def _impossible(request: Request, error: ValueError) -> JSONResponse:
        return answer(422, str(error))

    @app.exception_handler(IndexProblem)
    async def _index(request: Request, error: IndexProblem) -> JSONResponse:
        return answer(409 if isinstance(error, Locked) else 503, str(error))

    @app.exception_handler(OSError)
    async def _disk(request: Request, error: OSError) -> JSONResponse:
        return answer(507, str(error))


def worded(error: Any) -> tuple[str, str | None]:
    """The problem and the field of one of pydantic's errors."""
    place = [str(p) for p in error["loc"]]
    if len(place) > 1 and place[0] in ("body", "query"):
        place = place[1:]
    # Parts of unions are named after types, which say nothing to a caller.
    typed = next((i for i, p in enumerate(place) if i and (p in TYPES or "[" in p)), len(place))
    if error["type"] == "json_invalid":
        return f"it is no JSON: {error.get('ctx', {}).get('error', error['msg'])}", "body"
    if error["type"] == "string_pattern_mismatch":
        return "it is empty; pass at least one word", ".".join(place[:typed])
    # What our own checks say is worded as everywhere.
    return error["msg"].removeprefix("Value error, "), ".".join(place[:typed]) or "body"


def _methods(app: FastAPI, request: Request) -> set[str]:
    found: set[str] = set()
    for route in app.routes:
        if route.matches(request.scope)[0] is not Match.NONE:
            found |= set(getattr(route, "methods", None) or ())
    return found
