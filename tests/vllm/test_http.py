"""`vllm serve` under a plan, asked over HTTP with the openai client."""

import base64
import subprocess
import sys
import time
import urllib.request

import openai
import pytest

from tests.vllm.serving import EXAMPLES
from tokensieve import testbed

PORT = 8931
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
QUESTION = "how many digits are there ? answer :"
TEXT = 8
"""Tokens of the prompt beside the picture's."""


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    (folder / "chat.jinja").write_text(TEMPLATE)
    command = [
        sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(testbed.path()), "--host", "127.0.0.1", "--port",
        str(PORT),
        "--dtype", "float32", "--enforce-eager", "--max-model-len", "1024", "--chat-template", str(folder / "chat.jinja"),
        "--trust-request-mm-kwargs", "--enable-prompt-tokens-details", "--served-model-name", "llava",
        "--hf-overrides", '{"tokensieve": {"method": "visionzip", "keep": 64}}',
    ]  # fmt: skip
    log = (folder / "log").open("w")
    server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        while not up():
            if server.poll() is not None:
                pytest.fail((folder / "log").read_text()[-3000:])
            time.sleep(1)
        yield openai.OpenAI(base_url=f"http://127.0.0.1:{PORT}/v1", api_key="none", max_retries=0, timeout=300)
    finally:
        server.terminate()
        server.wait(60)


def up():
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health", timeout=5).status == 200
    except OSError:
        return False


def ask(client, picture="scene-1.png", **plan):
    shown = base64.b64encode((EXAMPLES / picture).read_bytes()).decode()
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{shown}"}},
        {"type": "text", "text": QUESTION},
    ]
    more = {"mm_processor_kwargs": {f"sieve_{name}": value for name, value in plan.items()}} if plan else {}
    return client.chat.completions.create(
        model="llava", messages=[{"role": "user", "content": content}], temperature=0, max_tokens=4, extra_body=more
    )


def tokens(client, **plan):
    return ask(client, **plan).usage.prompt_tokens - TEXT


def test_prompts_hold_the_kept_tokens_only(client):
    assert tokens(client) == 64
    assert tokens(client, keep=32) == 32
    assert tokens(client, keep=0.25) == 144
    assert tokens(client, method="divprune", keep=16) == 16
    assert tokens(client, keep=1.0) == 576
    assert tokens(client, keep=5000) == 576


BAD = {
    "an unknown method": {"method": "divprun"},
    "an unknown option": {"alpha": 3},
    "none": {"keep": 0},
    "fewer": {"keep": -2},
    "too much": {"keep": 1.5},
    "a word": {"keep": "some"},
    "a file": {"plan": "/etc/passwd"},
    "a policy": {"positions": "none"},
    "of the text": {"method": "cdpruner"},
    "a layer that is not built": {"method": "fastervlm", "encoder_layer": -1},
    "inside the language model": {"method": "fastv"},
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_refused_and_the_next_one_answered(client, name):
    with pytest.raises(openai.BadRequestError):
        ask(client, **BAD[name])
    assert tokens(client) == 64


def cached(client, **plan):
    details = ask(client, "scene-36.png", **plan).usage.prompt_tokens_details
    return details.cached_tokens if details else 0


def test_plans_of_equal_count_share_no_cache(client):
    assert cached(client, method="divprune", keep=256) == 0
    assert cached(client, method="divprune", keep=256) >= 128
    assert cached(client, method="fastervlm", keep=256) == 0
    assert cached(client, method="fastervlm", keep=256) >= 128
    assert cached(client, keep=1.0) == 0
