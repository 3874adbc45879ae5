"""The client: what it gives is what the library behind the service gives."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient

import tokensieve as ts
from tests.shelf import put
from tokensieve.retrieval import client as client_module
from tokensieve.retrieval.client import ServiceError
from tokensieve.retrieval.service import application
from tokensieve.retrieval.sources.texts import Text

TEXTS = {"read": "Open a file and read it.", "cat": "The cat sat.", "dog": 'A dog and a "cat".'}


@pytest.fixture
def shelf(tmp_path):
    return put(tmp_path / "my.index", TEXTS)


@pytest.fixture
def asked(shelf):
    """A client whose requests go straight into the service."""
    made = ts.Client("http://localhost", "secret")
    made._http = TestClient(application(shelf, "secret"), "http://localhost", headers=made._http.headers)
    return made


def test_it_finds_what_the_library_finds(shelf, asked):
    for how in (
        {}, {"k": 2, "fuse": "rrf"}, {"fuse": 0.3, "offset": 1}, {"where": {"size": {"lt": 15}}}, {"keep": 0.5},
        {"per_document": True, "min_score": 0.1},
    ):  # fmt: skip
        assert asked.search("a cat", **how) == shelf.search("a cat", **how)
        assert asked.search(["a cat", "file"], **how) == shelf.search(["a cat", "file"], **how)
    assert asked.search("cat")[0].highlights == shelf.search("cat")[0].highlights
    assert asked.search("x", where={"sice": 1}) == []


def test_what_is_put_in_is_there(shelf, asked, tmp_path):
    said = asked.add(Text(f"t{i}", f"note {i}", {"i": i}) for i in range(3))
    assert said == {"written": 3, "unchanged": 0, "passages": 6}
    assert asked.get("t1")[0]["metadata"] == {"i": 1}
    assert asked.get("nobody") == []
    (tmp_path / "a b.md").write_text("# Rivers\n\nThey flow.")
    assert asked.upload(tmp_path / "a b.md")["written"] == 1
    assert asked.upload(tmp_path / "a b.md", "other")["passages"] == 8
    assert asked.get("a b.md")[0]["text"].endswith("They flow.")
    assert asked.delete("t1") is True
    assert asked.delete("t1") is False
    assert asked.about()["passages"] == len(shelf) == 7


def test_what_is_refused_is_raised(shelf, asked):
    with pytest.raises(ServiceError, match=r"status 422, field k, request") as raised:
        asked.search("cat", k=0)
    assert (raised.value.status, raised.value.field) == (422, "k")
    assert len(raised.value.request) == 16
    with pytest.raises(ServiceError, match="metadata"):
        asked.add([Text("a", "b", {"text": "own"})])
    asked._http.headers["Authorization"] = "Bearer wrong"
    with pytest.raises(ServiceError, match="a bearer token is needed") as raised:
        asked.get("cat")
    assert raised.value.status == 401


def test_what_is_no_service_is_said(asked):
    class Other:
        status_code, is_success, text, headers = 200, True, "<html>", {}

        def json(self):
            raise ValueError

    asked._http.request = lambda *_, **__: Other()
    with pytest.raises(ServiceError, match="no answer of a tokensieve service: '<html>'"):
        asked.about()


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(client_module.httpx, "_module", "no_such_httpx")
    with pytest.raises(ImportError, match="serve"):
        ts.Client("http://localhost")
