"""The page, driven in a headless Chromium, by its own driver or by that of the package `chromedriver-py`."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
import urllib.request
from pathlib import Path

import pytest
import uvicorn
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait as Wait

from benchmarks.browser import PATIENCE, driver
from benchmarks.browser import browser as headless
from tests.shelf import Words
from tokensieve.retrieval.index.library import Library
from tokensieve.retrieval.index.recipe import Recipe
from tokensieve.retrieval.service import application
from tokensieve.retrieval.sources.folder import Text

TEXTS = {
    "read.md": "Open a file and read it, line by line. 🎉 Done with the file.",
    "evil": "A file </script><img src=x onerror=\"document.title='evil'\"> of <b>bold</b> text.",
    **{f"note {i}": f"note number {i} about nothing, not a word of it" for i in range(12)},
    "guide.md": "# Rivers\n\nWater flows down to the delta.\n\n"
    + "Some words about rocks. " * 40
    + "\n\n```\nrun delta --all\n```\n",
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("chromium") and driver()),
        reason="needs chromium, and chromedriver or the package chromedriver-py of the browser's version",
    ),
]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    made = Library.create(tmp_path_factory.mktemp("page") / "my.index", Recipe(keep=1.0, codec="float32"), Words())
    made.put([Text(name, text, {"suffix": Path(name).suffix, "size": len(text)}) for name, text in TEXTS.items()])
    return made


@pytest.fixture(scope="module")
def browser():
    with headless(1000, 1100) as made:
        yield made


@pytest.fixture
def served(shelf, request):
    """The address of a service; its token is the parameter."""
    ear = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(application(shelf, getattr(request, "param", None)), log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [ear]}, daemon=True)
    thread.start()
    end = time.monotonic() + PATIENCE
    while not server.started and time.monotonic() < end:
        thread.join(0.01)
    yield f"http://127.0.0.1:{ear.getsockname()[1]}"
    server.should_exit = True
    thread.join(PATIENCE)
    ear.close()


def ask(browser, query):
    field = browser.find_element(By.ID, "query")
    field.clear()
    field.send_keys(query + "\n")


def status(browser, part):
    Wait(browser, PATIENCE).until(lambda d: part in d.find_element(By.ID, "status").text)


def hits(browser):
    return browser.find_elements(By.CSS_SELECTOR, "#hits li")


def test_a_query_its_matches_and_the_slider(browser, served):
    browser.get(served)
    Wait(browser, PATIENCE).until(lambda d: "16 passages" in d.find_element(By.ID, "about").text)
    ask(browser, "how do I read the FILE")
    status(browser, "10 of 16 passages")
    first = hits(browser)[0]
    assert "1. read.md" in first.text
    assert [m.text for m in first.find_elements(By.TAG_NAME, "mark")] == ["file", "read"]
    chips = [c.text for c in first.find_elements(By.CSS_SELECTOR, ".token")]
    assert any(c.startswith("FILE → file 1.00") for c in chips)
    assert any(c.startswith("read → read 1.00") for c in chips)
    # A chip under the keyboard shows its match; words that say little are no stop of the keyboard.
    chip = next(c for c in first.find_elements(By.CSS_SELECTOR, "button.token") if c.text.startswith("read"))
    assert len(first.find_elements(By.CSS_SELECTOR, "button.token")) == 2
    browser.execute_script("arguments[0].focus()", chip)
    assert [m.text for m in first.find_elements(By.CSS_SELECTOR, "mark.lit")] == ["read"]
    before = [int(h.find_element(By.CSS_SELECTOR, ".score").text.split("·")[1].split()[0]) for h in hits(browser)]
    browser.execute_script(
        "const k = document.getElementById('keep'); k.value = 20; k.dispatchEvent(new Event('input'))"
    )
    status(browser, "were among the first 10 by all vectors")
    assert browser.find_element(By.ID, "share").text == "20%"
    after = [int(h.find_element(By.CSS_SELECTOR, ".score").text.split("·")[1].split()[0]) for h in hits(browser)]
    assert sum(after) < sum(before) / 3
    # The address brings it back.
    browser.get("about:blank")
    browser.get(f"{served}/#q=nothing&keep=40")
    status(browser, "were among")
    assert browser.find_element(By.ID, "query").get_attribute("value") == "nothing"


def test_more_around_and_back(browser, served):
    browser.get(f"{served}/#q=delta")
    status(browser, "10 of 16 passages")
    first = hits(browser)[0]
    assert "guide.md" in first.find_element(By.TAG_NAME, "h2").text
    browser.find_element(By.ID, "more").click()
    status(browser, "16 of 16 passages.")
    assert len(hits(browser)) == 16
    assert not browser.find_element(By.ID, "more").is_displayed()
    first.find_element(By.CSS_SELECTOR, ".acts button").click()
    Wait(browser, PATIENCE).until(lambda d: d.find_elements(By.CSS_SELECTOR, ".around"))
    around = " ".join(e.text for e in first.find_elements(By.CSS_SELECTOR, ".text"))
    assert "Water flows" in around
    assert "run delta --all" in around
    # The document, and back.
    first.find_element(By.CSS_SELECTOR, "h2 a").click()
    status(browser, "guide.md: 2 passages")
    assert [h.find_element(By.TAG_NAME, "h2").text for h in hits(browser)] == ["guide.md", "guide.md"]
    browser.back()
    status(browser, "10 of 16 passages")
    ask(browser, "file")
    status(browser, "10 of 16 passages")
    browser.back()
    Wait(browser, PATIENCE).until(lambda d: d.find_element(By.ID, "query").get_attribute("value") == "delta")
    status(browser, "10 of 16 passages")
    assert "guide.md" in hits(browser)[0].text


def test_markdown_and_code_are_shown_as_such(browser, served):
    browser.get(f"{served}/#q=delta&where=suffix+%3D+.md%2C+size+%3E+500")
    status(browser, "2 of 16 passages")
    kinds = {
        e.get_attribute("class"): e.text
        for h in hits(browser)
        for e in h.find_elements(By.CSS_SELECTOR, ".text > span")
    }
    assert kinds["code fence"].strip() in ("run delta --all", "```")
    shown = "".join(e.get_property("textContent") for e in browser.find_elements(By.CSS_SELECTOR, "#hits .text"))
    assert sorted(shown) == sorted("".join(p["text"] for p in json.loads(json.dumps(served_passages(served)))))


def served_passages(served):
    with urllib.request.urlopen(f"{served}/documents?id=guide.md") as got:
        return json.loads(got.read())["passages"]


def test_filters_and_words(browser, served):
    browser.get(served)
    Wait(browser, PATIENCE).until(lambda d: d.find_elements(By.CSS_SELECTOR, "#known option"))
    known = [o.get_attribute("value") for o in browser.find_elements(By.CSS_SELECTOR, "#known option")]
    assert "suffix = .md" in known
    ask(browser, "file")
    status(browser, "10 of 16 passages")
    field = browser.find_element(By.ID, "where")
    field.send_keys("suffix = .md, size < 100\n")
    status(browser, "1 of 16 passages")
    for text, says in (("suffix =", "“suffix =” is not finished"), ("sufix = 1", "no document has the field 'sufix'")):
        field.clear()
        field.send_keys(text + "\n")
        status(browser, says)
    field.clear()
    field.send_keys("\n")
    status(browser, "10 of 16 passages")
    browser.find_element(By.CSS_SELECTOR, "#fuse option[value=rrf]").click()
    status(browser, "10 of 16 passages")
    assert browser.find_element(By.ID, "keep").get_property("disabled")
    assert "fuse=rrf" in browser.current_url


def test_a_server_that_is_gone_is_said_in_words(browser, shelf):
    ear = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(application(shelf), log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [ear]}, daemon=True)
    thread.start()
    browser.get(f"http://127.0.0.1:{ear.getsockname()[1]}/#q=file")
    status(browser, "10 of 16 passages")
    server.should_exit = True
    thread.join(PATIENCE)
    ear.close()
    ask(browser, "cat")
    status(browser, "The service does not answer")


def test_no_fault_of_accessibility(browser, served):
    axe = pytest.importorskip("axe_core_python")
    script = (Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    for address in ("#q=read+a+file", "#q=delta&fuse=rrf", "#document=guide.md"):
        browser.get("about:blank")
        browser.get(f"{served}/{address}")
        status(browser, "passages")
        browser.execute_script(script)
        found = browser.execute_async_script("axe.run().then(arguments[0])")
        assert [(v["id"], [n["html"] for n in v["nodes"]]) for v in found["violations"]] == []
        assert len(found["passes"]) > 20


def test_what_is_damaged_is_said(browser, served, shelf, monkeypatch):
    monkeypatch.setattr(type(shelf.index), "damaged", ["000001.safetensors: token block 0"])
    browser.get(served)
    ask(browser, "read a file")
    status(browser, "Damaged, not searched: 000001.safetensors: token block 0")
    assert hits(browser)


def test_text_is_text(browser, served):
    browser.get(f"{served}/#q=file+of+bold")
    status(browser, "of 16 passages")
    shown = next(h for h in hits(browser) if "evil" in h.find_element(By.TAG_NAME, "h2").text)
    assert TEXTS["evil"] in shown.find_element(By.CSS_SELECTOR, ".text").text
    assert browser.title == "tokensieve search"
    assert not browser.find_elements(By.CSS_SELECTOR, "#hits img, #hits b b")


def test_nothing_comes_from_elsewhere_and_nothing_is_logged(browser, served):
    for what in ("performance", "browser"):  # of the tests before
        browser.get_log(what)
    browser.get(f"{served}/#q=file")
    status(browser, "of 16 passages")
    sent = [json.loads(e["message"])["message"] for e in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in sent if m["method"] == "Network.requestWillBeSent"]
    assert asked
    assert all(url.startswith((served, "data:")) for url in asked)
    assert [e for e in browser.get_log("browser") if e["level"] == "SEVERE"] == []


@pytest.mark.parametrize("served", ["open sesame"], indirect=True)
def test_a_token_opens_the_door(browser, served):
    browser.get("about:blank")
    browser.get(f"{served}/#q=file")
    status(browser, "a bearer token is needed")
    browser.find_element(By.ID, "token").send_keys("open sesame\n")
    status(browser, "of 16 passages")
    assert not browser.find_element(By.ID, "door").is_displayed()


def test_names_and_roles(browser, served):
    """What a screen reader is told."""
    browser.get(f"{served}/#q=file")
    status(browser, "of 16 passages")
    for element in browser.find_elements(By.CSS_SELECTOR, "input, button"):
        assert element.accessible_name or not element.is_displayed()
    assert browser.find_element(By.ID, "status").get_attribute("aria-live") == "polite"
    assert browser.find_element(By.TAG_NAME, "html").get_attribute("lang") == "en"
