"""The HTTP service: what it answers, what it refuses, and that nothing makes it fail."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import threading
from concurrent.futures import ThreadPoolExecutor

import anyio
import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

from tests.shelf import Words, put
from tokensieve.retrieval.index.index import Index
from tokensieve.retrieval.index.library import Library
from tokensieve.retrieval.service import application, gather, writing
from tokensieve.retrieval.service.gather import Busy, Gatherer
from tokensieve.retrieval.service.limits import Limits

TOKEN = "a secret"
LINES = {"Content-Type": "application/x-ndjson"}
TEXTS = {"read.md": "Open a file and read it line by line.", "socket": "Close a network socket.", "cat": "The cat sat."}


@pytest.fixture
def shelf(tmp_path):
    return put(tmp_path / "my.index", TEXTS)


@pytest.fixture
def client(shelf):
    return TestClient(application(shelf, hosts=None), raise_server_exceptions=False)


def lines(*documents):
    return "\n".join(json.dumps(d) for d in documents)


def error(answer, status):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    return answer.json()["error"]


def test_search_says_what_was_matched(client):
    got = client.post("/search", json={"query": "how do I read a FILE", "k": 2}).json()
    assert got["hits"][0]["document"] == "read.md"
    assert len(got["hits"]) == 2
    assert got["passages"] == 3
    hit = got["hits"][0]
    words = {m["token"]: hit["text"][slice(*m["passage"])] for m in hit["matches"] if m["passage"]}
    assert words["FILE"] == "file"
    assert [hit["text"][a:b] for a, b in hit["highlights"]] == ["file", "read"]
    assert hit["score"] == pytest.approx(sum(m["similarity"] for m in hit["matches"]), abs=1e-4)
    found = client.post("/search", json={"query": "file", "where": {"size": {"lt": 15}}}).json()["hits"]
    assert [h["document"] for h in found] == ["cat"]
    fewer = client.post("/search", json={"query": "file", "keep": 0.3}).json()["hits"]
    whole = client.post("/search", json={"query": "file"}).json()["hits"]
    assert sum(h["vectors"] for h in fewer) < sum(h["vectors"] for h in whole) / 2


def test_what_is_damaged_is_named(client, shelf, monkeypatch):
    assert client.post("/search", json={"query": "file"}).json()["damaged"] == []
    monkeypatch.setattr(type(shelf.index), "damaged", ["000001.safetensors: token block 0"])
    assert client.post("/search", json={"query": "file"}).json()["damaged"] == ["000001.safetensors: token block 0"]


def test_documents_are_added_replaced_and_deleted(client, shelf):
    body = lines(
        {"id": "a/b#c é", "text": "a new note"}, {"id": "cat", "text": "No cat any more.", "metadata": {"n": [1]}}
    )
    assert client.post("/documents", content=body, headers=LINES).json() == {
        "written": 2,
        "unchanged": 0,
        "passages": 4,
    }
    assert client.post("/documents", content=body + "\n\n", headers=LINES).json()["unchanged"] == 2
    got = client.get("/documents", params={"id": "a/b#c é"}).json()
    assert got == {
        "id": "a/b#c é",
        "of": 1,
        "passages": [
            {"id": "a/b#c é#0", "text": "a new note", "span": [0, 10], "context": "", "place": "line 1", "metadata": {}}
        ],
    }
    assert client.get("/documents", params={"id": "cat"}).json()["passages"][0]["metadata"] == {"n": [1]}
    assert client.delete("/documents", params={"id": "cat"}).json() == {"deleted": 1}
    assert error(client.get("/documents", params={"id": "cat"}), 404)["field"] == "id"
    assert error(client.delete("/documents", params={"id": "cat"}), 404)["field"] == "id"
    assert client.get("/health").json() == {"status": "ok", "passages": 3}
    assert client.get("/about").json()["codec"] == "float32"
    # Nobody is kept from writing while the service is idle.
    Index.open(shelf.index.folder).delete(["socket#0"])
    assert client.get("/health").json()["passages"] == 2


def test_a_stream_is_written_while_it_arrives(client, shelf, monkeypatch):
    monkeypatch.setattr(writing, "BATCH", 2)
    seen = []

    def stream():
        for i in range(6):
            seen.append(len(shelf))
            part = json.dumps({"id": f"s{i}", "text": f"note {i}"}).encode() + b"\n"
            yield part[:5]
            yield part[5:]
            yield json.dumps({"id": f"t{i}", "text": "x"}).encode() + b"\n"

    got = client.post("/documents", content=stream(), headers=LINES).json()
    assert got == {"written": 12, "unchanged": 0, "passages": 15}
    put: list[int] = []
    monkeypatch.setattr(shelf, "put", lambda texts, done: put.append(len(texts)) or len(texts))
    client.post("/documents", content=lines(*({"id": str(i), "text": "x"} for i in range(5))), headers=LINES)
    assert put == [2, 2, 1]


def test_lines_before_a_wrong_one_are_kept(client):
    body = lines({"id": "good", "text": "good"}, {"id": "bad", "text": 5}, {"id": "never", "text": "never"})
    wrong = error(client.post("/documents", content=body, headers=LINES), 422)
    assert (wrong["field"], wrong["line"]) == ("text", 2)
    assert client.get("/documents", params={"id": "good"}).status_code == 200
    assert client.get("/documents", params={"id": "never"}).status_code == 404


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "query"), ({"query": ""}, "query"), ({"query": " \n"}, "query"), ({"query": "\x1c"}, "query"),
        ({"query": "x" * 10_001}, "query"), ({"query": "\ud800"}, "query"), ({"query": "x", "k": 0}, "k"),
        ({"query": "x", "k": 101}, "k"), ({"query": "x", "k": "5"}, "k"), ({"query": "x", "keep": 0}, "keep"),
        ({"query": "x", "keep": 1.1}, "keep"), ({"query": "x", "where": {"a": {"like": 1}}}, "where"),
        ({"query": "x", "where": {"a": {"in": "abc"}}}, "where"),
        ({"query": "x", "where": 5}, "where"), ({"query": "x", "more": 1}, "more"), ([], "body"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(client, body, field):
    got = client.post("/search", content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert error(got, 422)["field"] == field


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("{", "body"), ('"text"', "body"), ('{"id": "", "text": "x"}', "id"), ('{"id": "a", "text": " "}', "text"),
        ('{"id": "a", "text": "x", "metadata": {"text": 1}}', "metadata"), ('{"id": "a"}', "text"),
        ('{"id": "a", "text": "x", "metadata": {"a": NaN}}', "metadata"), ("", "body"), ("\n\n", "body"), (b"\xff", "body"),
        ('{"id": "a", "text": "x", "metadata": {"a": {"$b": 1}}}', "metadata"),
    ],
)  # fmt: skip
def test_a_wrong_line_is_named(client, line, field):
    assert error(client.post("/documents", content=line, headers=LINES), 422)["field"] == field


def test_limits_of_bodies(shelf, monkeypatch):
    client = TestClient(application(shelf, hosts=None, limits=Limits(body=2000)), raise_server_exceptions=False)
    assert error(client.post("/search", content=b" " * 2001), 413)["field"] == "body"
    long = (lines({"id": str(i), "text": "x" * 100}).encode() + b"\n" for i in range(100))
    assert error(client.post("/documents", content=long, headers=LINES), 413)["field"] == "body"
    assert client.get("/health").json()["status"] == "ok"
    monkeypatch.setattr(writing, "LINE", 100)
    assert (
        "a line is longer"
        in error(client.post("/documents", content=(b"x" * 60 for _ in range(9)), headers=LINES), 413)["problem"]
    )


def test_a_token_is_asked_for(shelf):
    client = TestClient(application(shelf, TOKEN, hosts=None), raise_server_exceptions=False)
    asked = [
        ("GET", "/about"),
        ("POST", "/search"),
        ("POST", "/documents"),
        ("GET", "/documents"),
        ("DELETE", "/documents"),
    ]
    for method, path in asked:
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": f"Basic {TOKEN}"},
            {"Authorization": "Bearer é".encode()},
        ):
            got = client.request(method, path, headers=headers)
            assert error(got, 401)
            assert got.headers["www-authenticate"] == "Bearer"
    assert client.get("/about", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert client.get("/health").status_code == client.get("/").status_code == 200


def test_other_hosts_other_types_and_other_methods_are_refused(shelf):
    client = TestClient(application(shelf), raise_server_exceptions=False)
    for host, status in (
        ("localhost:8000", 200),
        ("127.0.0.1", 200),
        ("[::1]:80", 200),
        ("evil.example", 421),
        ("", 421),
    ):
        assert client.get("/health", headers={"Host": host}).status_code == status, host
    at = {"Host": "localhost"}
    assert (
        error(client.post("/documents", content=lines({"id": "a", "text": "b"}), headers=at), 422)["field"]
        == "content-type"
    )
    text = {**at, "Content-Type": "text/plain"}
    assert error(client.post("/search", content='{"query": "x"}', headers=text), 422)["field"] == "body"
    got = client.put("/documents", headers=at)
    assert error(got, 405)
    assert got.headers["allow"] == "DELETE, GET, POST"
    assert error(client.get("/nothing", headers=at), 404)


def test_another_writer_is_named(client, shelf):
    other = Index.open(shelf.index.folder)
    other.delete(["cat#0"])  # takes the lock
    try:
        got = client.post("/documents", content=lines({"id": "a", "text": "b"}), headers=LINES)
        assert "written by another" in error(got, 409)["problem"]
        assert client.post("/search", json={"query": "file"}).status_code == 200
    finally:
        other.close()
    assert client.post("/documents", content=lines({"id": "a", "text": "b"}), headers=LINES).status_code == 200


def test_searches_while_documents_come_and_go(client):
    problems = []

    def ask():
        for _ in range(20):
            got = client.post("/search", json={"query": "note file", "keep": 0.5})
            if got.status_code != 200:
                problems.append(got.text)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for i in range(10):
        client.post(
            "/documents", content=lines(*({"id": str(j), "text": f"note {i}"} for j in range(5))), headers=LINES
        )
        client.delete("/documents", params={"id": str(i % 5)})
    for thread in threads:
        thread.join()
    assert problems == []


class Slow(Words):
    """Waits for an event before it encodes a query, and keeps what it was asked together."""

    def __init__(self):
        super().__init__()
        self.go, self.begun, self.batches = threading.Event(), threading.Event(), []

    def queries(self, texts):
        self.begun.set()
        assert self.go.wait(60)
        self.batches.append(list(texts))
        return super().queries(texts)


@pytest.fixture
def slow(shelf):
    return Library.open(shelf.index.folder, Slow())


def test_searches_that_wait_go_in_one_batch(slow):
    """And each is answered as if it had been alone, a wrong one too."""
    gatherer = Gatherer(slow, Limits(together=16))
    first = gatherer.ask(["cat"], k=1)
    assert slow.encoder.begun.wait(60)
    others = [gatherer.ask([text, "cat"], k=1) for text in ("file", "socket", "line")]
    wrong = gatherer.ask(["\ud800"], k=1)
    other = gatherer.ask(["file"], k=2)
    slow.encoder.go.set()
    assert [[one.results[0].document for one in f.result(60)] for f in others] == [
        ["read.md", "cat"], ["socket", "cat"], ["read.md", "cat"]
    ]  # fmt: skip
    assert first.result(60)[0].results[0].document == "cat"
    with pytest.raises(ValueError, match="string of Unicode"):
        wrong.result(60)
    assert len(other.result(60)[0].results) == 2
    assert slow.encoder.batches == [
        ["cat"], ["file", "cat"], ["socket", "cat"], ["line", "cat"], ["file"]
    ]  # fmt: skip
    gatherer.close()
    with pytest.raises(Busy):
        gatherer.ask(["cat"], k=1)


def test_equal_settings_go_together(slow):
    gatherer = Gatherer(slow, Limits(together=5))
    waiting = [gatherer.ask(["cat"], k=1)]
    assert slow.encoder.begun.wait(60)
    waiting += [gatherer.ask([f"file {i}"], k=1) for i in range(8)]
    waiting[2].cancel()
    slow.encoder.go.set()
    for one in (w for w in waiting if not w.cancelled()):
        one.result(60)
    assert [len(b) for b in slow.encoder.batches] == [1, 5, 2]
    assert (gatherer.batches, gatherer.searched) == (3, 8)
    gatherer.close()


def test_those_answered_together_go_together_again(slow, monkeypatch):
    monkeypatch.setattr(gather, "RETURN", 60)
    gatherer = Gatherer(slow, Limits())
    first = gatherer.ask(["cat"], k=1)
    assert slow.encoder.begun.wait(60)
    some = [gatherer.ask([f"file {i}"], k=1) for i in range(3)]
    slow.encoder.go.set()
    for one in (first, *some):
        one.result(60)
    for i in range(3):
        again = gatherer.ask([f"line {i}"], k=1)
    again.result(60)
    assert [len(b) for b in slow.encoder.batches] == [1, 3, 3]
    gatherer.close()


def test_too_many_and_too_long_are_said(slow):
    app = application(slow, hosts=None, limits=Limits(waiting=1, seconds=0.2))
    with TestClient(app, raise_server_exceptions=False) as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.post, "/search", json={"query": "cat"})
        assert slow.encoder.begun.wait(60)
        assert "took more than 0.2 seconds" in error(first.result(60), 504)["problem"]
        # What has begun goes on; one may wait behind it.
        late = pool.submit(client.post, "/search", json={"query": "cat"})
        got = [client.post("/search", json={"query": "cat"}) for _ in range(2)]
        assert {g.status_code for g in [*got, late.result(60)]} <= {429, 504}
        assert any(g.status_code == 429 and g.headers["retry-after"] == "1" for g in [*got, late.result(60)])
        slow.encoder.go.set()


def test_a_body_that_stops_arriving_holds_nobody(shelf):
    app = application(shelf, hosts=None, limits=Limits(seconds=0.2))
    messages = iter([{"type": "http.request", "body": b'{"id": "a", "text": "b"}\n', "more_body": True}])
    sent = []

    async def receive():
        try:
            return next(messages)
        except StopIteration:
            await anyio.sleep_forever()

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/documents", "raw_path": b"/documents", "query_string": b"",
        "headers": [(b"content-type", b"application/x-ndjson"), (b"host", b"x")], "http_version": "1.1", "scheme": "http",
    }  # fmt: skip
    anyio.run(app, scope, receive, send)
    assert sent[0]["status"] == 408


def test_requests_at_once_are_counted(slow):
    app = application(slow, hosts=None, limits=Limits(requests=1))
    with TestClient(app, raise_server_exceptions=False) as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.post, "/search", json={"query": "cat"})
        assert slow.encoder.begun.wait(60)
        assert "1 requests are being answered" in error(client.get("/about"), 429)["problem"]
        assert client.get("/health").status_code == 200
        slow.encoder.go.set()
        assert first.result(60).status_code == 200
        assert client.get("/about").status_code == 200


def test_one_token_reads_and_another_writes(shelf):
    client = TestClient(application(shelf, TOKEN, hosts=None, reading="look"), raise_server_exceptions=False)
    look, write = ({"Authorization": f"Bearer {t}"} for t in ("look", TOKEN))
    for headers in (look, write):
        assert client.post("/search", json={"query": "cat"}, headers=headers).status_code == 200
        assert client.get("/about", headers=headers).status_code == 200
    body = lines({"id": "new", "text": "a note"})
    for call in (
        lambda h: client.post("/documents", content=body, headers=LINES | h),
        lambda h: client.post("/files", params={"id": "x.txt"}, content=b"text", headers=h),
        lambda h: client.delete("/documents", params={"id": "new"}, headers=h),
    ):
        assert "only reads" in error(call(look), 403)["problem"]
        assert error(call({}), 401)
        assert call(write).status_code == 200
    with pytest.raises(ValueError, match="give both"):
        application(shelf, reading="look")


def test_pages_of_other_sites_ask_where_they_are_named(shelf):
    client = TestClient(application(shelf, hosts=None, origins=["https://a.example"]))
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    for origin, allowed in (("https://a.example", "https://a.example"), ("https://b.example", None)):
        got = client.options("/search", headers={"Origin": origin} | asked)
        assert got.headers.get("access-control-allow-origin") == allowed
        got = client.post("/search", json={"query": "cat"}, headers={"Origin": origin})
        assert got.headers.get("access-control-allow-origin") == allowed
    assert (
        "access-control-allow-origin"
        not in TestClient(application(shelf, hosts=None))
        .get("/health", headers={"Origin": "https://a.example"})
        .headers
    )
    for wrong in ("*", "a.example", "https://a.example/path"):
        with pytest.raises(ValueError, match="name a site"):
            application(shelf, origins=[wrong])


def test_files_are_put_in_as_index_reads_them(client, shelf):
    page = "<html><nav>Menu</nav><main><h1>Rivers</h1><p>They flow to the sea.</p></main></html>"
    got = client.post("/files", params={"id": "rivers.html"}, content=page.encode())
    assert got.json() == {"written": 1, "unchanged": 0, "passages": 4}
    assert client.post("/files", params={"id": "rivers.html"}, content=page.encode()).json()["unchanged"] == 1
    held = shelf.get("rivers.html")
    assert "Menu" not in held[0]["text"]
    assert held[0]["metadata"] == {"kind": "file", "suffix": ".html"}
    packed = (gzip.compress(b"x"), bz2.compress(b"x"), lzma.compress(b"x"), b"a.txt" + b"\0" * 252 + b"ustar\x00")
    whys = {
        b"\0\1": "binary",
        b"PK\x03\x04": "archive",
        b" ": "no text",
        **dict.fromkeys(packed, "an archive; unpack it"),
    }
    for content, why in whys.items():
        said = error(client.post("/files", params={"id": "x"}, content=content), 422)["problem"]
        assert said.startswith("x: ")
        assert why in said or "cannot be opened" in said


def test_what_conditions_may_speak_of(client):
    about = {"by": {"name": "Ann"}, "tags": ["x"], "long": "y" * 99}
    client.post("/documents", content=lines({"id": "a", "text": "b", "metadata": about}), headers=LINES)
    got = client.get("/fields").json()["fields"]
    assert sorted(got["size"]) == sorted({len(text) for text in TEXTS.values()})
    assert (got["by.name"], got["tags"], got["long"]) == (["Ann"], [], [])


def test_some_of_a_document(client):
    client.post("/documents", content=lines({"id": "long", "text": "\n\n".join(["word " * 120] * 6)}), headers=LINES)
    whole = client.get("/documents", params={"id": "long"}).json()
    assert whole["of"] == len(whole["passages"]) > 3
    some = client.get("/documents", params={"id": "long", "first": 1, "count": 2}).json()
    assert some["passages"] == whole["passages"][1:3]


def test_requests_have_ids_and_are_logged_without_what_was_asked(client, caplog):
    with caplog.at_level("INFO", "tokensieve.service"):
        got = client.post("/search", json={"query": "a secret wish"}, headers={"X-Request-Id": "mine-7"})
        other = client.get("/documents", params={"id": "nobody"}, headers={"X-Request-Id": "no id\tat all"})
    assert got.headers["x-request-id"] == "mine-7"
    assert len(other.headers["x-request-id"]) == 16
    first, second = (r.getMessage() for r in caplog.records)
    assert first.startswith("mine-7 POST /search 200 ")
    assert second.startswith(other.headers["x-request-id"] + " GET /documents 404 ")
    assert "secret" not in caplog.text
    assert "nobody" not in caplog.text


def test_prometheus_is_told(client):
    parser = pytest.importorskip("prometheus_client.parser")
    client.post("/search", json={"query": "cat"})
    client.post("/search", json={"query": ""})
    client.get("/no/such/path")
    got = client.get("/metrics")
    assert got.headers["content-type"].startswith("text/plain")
    found = {}
    for family in parser.text_string_to_metric_families(got.text):
        for sample in family.samples:
            found[sample.name, *sorted(v for k, v in sample.labels.items() if k != "worker")] = sample.value
    assert found["tokensieve_requests_total", "/search", "200", "POST"] == 1
    assert found["tokensieve_requests_total", "/search", "422", "POST"] == 1
    assert found["tokensieve_requests_total", "404", "GET", "other"] == 1
    assert found["tokensieve_request_seconds_count", "/search"] == 2
    assert found["tokensieve_request_seconds_bucket", "+Inf", "/search"] == 2
    assert found["tokensieve_passages",] == 3
    assert found["tokensieve_searches_total",] == 1


# ---- fuzzing


@schemathesis.serializer("application/x-ndjson")
def _lines(context, value):
    if isinstance(value, bytes):
        return value
    return "\n".join(json.dumps(v) for v in value) if isinstance(value, list) else json.dumps(value)


def _sent(case):
    """Whether a body is small enough to be read: others are refused for their size, which no schema tells."""
    return not isinstance(case.body, list) or sum(len(str(line)) for line in case.body) < 1 << 20


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize("path", ["/", "/health", "/about", "/search", "/searches", "/documents", "/fields"])
def test_no_request_makes_it_fail(shelf, path, mode):
    """Requests that fit the schema are answered as it says, others refused as it says; by the checks of schemathesis."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", application(shelf, TOKEN, hosts=None))
    known = {"Authorization": f"Bearer {TOKEN}"}
    tried = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.path != path:
            continue
        try:
            cases = operation.as_strategy(generation_mode=mode).filter(_sent)

            @settings(
                max_examples=15, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
            )
            @given(case=cases)
            def ask(case):
                case.call_and_validate(headers=known, timeout=300)

            ask()
        except Unsatisfiable:  # nothing is wrong where nothing is asked
            assert mode == GenerationMode.NEGATIVE
            continue
        tried += 1
    assert tried or mode == GenerationMode.NEGATIVE
