"""Client: a service of `tokensieve serve`, asked from Python as a library is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tokensieve.extras import Lazy
from tokensieve.retrieval.index.filters import Where
from tokensieve.retrieval.index.fusion import Fuse
from tokensieve.retrieval.index.results import Match, SearchResult
from tokensieve.retrieval.sources.texts import Text

httpx: Any = Lazy("httpx", "serve")


class ServiceError(Exception):
    """What a service has answered in the place of a result.

    Attributes:
        status: of HTTP: 401 for a wrong token, 404, 422 for a wrong field, 429 where it is busy, ...
        field, line: what was wrong, where that is known.
        request: the id of the request, which the service's log names too.
    """

    def __init__(self, status: int, problem: str, field: str | None, line: int | None, request: str | None) -> None:
        where = ", ".join(f"{name} {value}" for name, value in (("field", field), ("line", line)) if value is not None)
        super().__init__(f"{problem} ({', '.join(filter(None, [f'status {status}', where, f'request {request}']))})")
        self.status, self.problem, self.field, self.line, self.request = status, problem, field, line, request


class Client:
    """A service by its address.

    Args:
        url: as `tokensieve serve` shows it.
        token: what the service asks for, if it does.
        seconds: until an answer must begin to arrive.

    Raises:
        ServiceError: from every call, where the service refuses.

    Example:
        >>> with ts.Client("http://127.0.0.1:8000") as client:                  # doctest: +SKIP
        ...     client.add([Text("note", "Rivers flow to the sea.")])
        ...     client.search("where do rivers go", k=3)[0].text
    """

    def __init__(self, url: str, token: str | None = None, seconds: float = 60.0) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=seconds)

    def search(
        self, query: str | Sequence[str], k: int = 10, where: Where | None = None, keep: float | None = None, *,
        fuse: Fuse = "none", offset: int = 0, min_score: float | None = None, per_document: bool = False, cross: bool = False,
    ) -> list[Any]:  # fmt: skip
        """As :meth:`Library.search`: the best passages, of many queries a list of such lists; ``cross`` asks for the service's
        cross-encoder."""
        asked: dict[str, Any] = {
            "query": query if isinstance(query, str) else list(query), "k": k, "fuse": fuse, "offset": offset,
            "per_document": per_document, "cross": cross, "where": where, "keep": keep, "min_score": min_score,
        }  # fmt: skip
        asked = {name: value for name, value in asked.items() if value is not None}
        if isinstance(query, str):
            return _results(self._call("POST", "/search", json=asked))
        return [_results(answer) for answer in self._call("POST", "/searches", json=asked)["answers"]]

    def add(self, texts: Iterable[Text]) -> dict[str, int]:
        """Add texts, or replace those of the same name, while they are made; says how many were ``written`` and ``unchanged``,
        and how many ``passages`` there are now."""

        def lines() -> Iterator[bytes]:
            for text in texts:
                yield json.dumps({"id": text.name, "text": text.source, "metadata": text.metadata}).encode() + b"\n"

        return self._call("POST", "/documents", content=lines(), headers={"Content-Type": "application/x-ndjson"})

    def upload(self, file: str | Path, name: str | None = None) -> dict[str, int]:
        """Add a file that `tokensieve index` could read, under its own name by default."""
        file = Path(file)
        return self._call("POST", "/files", params={"id": name or file.name}, content=file.read_bytes())

    def get(self, name: str) -> list[dict[str, Any]]:
        """The passages of a document; none where there is no such document."""
        try:
            return self._call("GET", "/documents", params={"id": name})["passages"]
        except ServiceError as problem:
            if problem.status == 404:
                return []
            raise

    def delete(self, name: str) -> bool:
        """Delete a document; whether it was there."""
        try:
            return bool(self._call("DELETE", "/documents", params={"id": name})["deleted"])
        except ServiceError as problem:
            if problem.status == 404:
                return False
            raise

    def about(self) -> dict[str, Any]:
        """What is searched: the encoder, how vectors were made, how many there are."""
        return self._call("GET", "/about")

    def close(self) -> None:
        """Let go of the connections."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        got = self._http.request(method, path, **more)
        try:
            read = got.json()
        except ValueError:
            read = {"error": {"problem": f"no answer of a tokensieve service: {got.text[:200]!r}"}}
        if got.is_success and "error" not in read:
            return read
        said = read.get("error", {})
        request = got.headers.get("x-request-id")
        raise ServiceError(got.status_code, said.get("problem", ""), said.get("field"), said.get("line"), request)


def _results(answer: dict[str, Any]) -> list[SearchResult]:
    return [
        SearchResult(
            hit["id"], hit["document"], hit["text"], tuple(hit["span"]), hit["score"], hit["vectors"], hit["metadata"],
            tuple(
                Match(_span(m["query"]), _span(m["passage"]), m["similarity"], m["stop"], _span(m["context"]))
                for m in hit["matches"]
            ),
            hit["context"], hit["place"], tuple(answer["notes"]), hit["fused"], hit["cross"],
        )
        for hit in answer["hits"]
    ]  # fmt: skip


def _span(span: list[int] | None) -> tuple[int, int] | None:
    return None if span is None else (span[0], span[1])
