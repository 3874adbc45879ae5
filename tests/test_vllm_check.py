"""`tokensieve vllm check MODEL`, with vLLM at hand or not."""

import importlib.util
import json

import pytest
from typer.testing import CliRunner

from tokensieve import testbed
from tokensieve.cli.main import app
from tokensieve.integrations.vllm import hooks
from tokensieve.integrations.vllm.check import check

HERE = importlib.util.find_spec("vllm") is not None


def asked(*args):
    return CliRunner().invoke(app, ["vllm", "check", str(testbed.path()), *args])


def test_what_a_model_can_tell_is_shown():
    report = check(str(testbed.path()))
    assert (report.tower.depth, report.tower.built, report.tower.cls, report.tower.blind) == (6, 5, True, "")
    assert report.positions == {"original": "", "compact": ""}
    assert report.architecture == "LlavaForConditionalGeneration"
    assert report.methods["visionzip"] == ""
    assert "reads the text" in report.methods["cdpruner"]


def test_the_command_says_whether_it_can_be_served():
    shown = asked()
    assert shown.exit_code == (0 if HERE else 1)
    assert "5 of 6 blocks are built, with a CLS token" in shown.stdout
    assert "can be served" in shown.stdout
    told = json.loads(asked("--json").stdout)
    assert told["ok"] is HERE
    assert told["methods"]["divprune"] == ""


@pytest.mark.skipif(HERE, reason="vLLM is installed")
def test_a_missing_vllm_is_told():
    assert "vLLM is not installed" in asked().stdout
    assert "pip install '.[vllm]'" in asked().stdout


def test_names_that_are_not_there_are_told(monkeypatch):
    assert hooks.missing(("json:loads", "json:loads.nothing", "no_such_module:x")) == [
        "json.loads.nothing",
        "no_such_module.x",
    ]
    monkeypatch.setattr(hooks, "version", lambda: "0.32.0")
    assert "lacks json.nothing" in hooks.refusal(("json:nothing",))
    assert hooks.refusal(("json:loads",)) is None
    monkeypatch.setattr(hooks, "version", lambda: "0.11.2")
    assert "older than 0.30" in hooks.refusal(("json:loads",))
