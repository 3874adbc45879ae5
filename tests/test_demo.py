"""The demo: what it asks, and of which models."""

import io

import pytest
from rich.console import Console

import tokensieve as ts
from tokensieve import testbed
from tokensieve.bench import demo, equal, own
from tokensieve.bench.data import from_testbed
from tokensieve.bench.equal import Shape
from tokensieve.bench.questions import read_questions
from tokensieve.bench.run import BASELINES
from tokensieve.testbed import real


@pytest.fixture
def asked(monkeypatch):
    """What would be measured."""
    here = []
    monkeypatch.setattr(own, "questions", lambda config, console: here.append(config))
    monkeypatch.setattr(own, "texts", lambda config, console: here.append(config))
    monkeypatch.setattr(demo, "from_testbed", lambda count, seed: from_testbed(5, seed))
    return here


@pytest.mark.parametrize("there", [False, True])
def test_the_second_half_is_shown_where_smollm2_is(asked, tmp_path, monkeypatch, there):
    monkeypatch.setattr(real, "there", lambda name: there)
    shown = Console(file=io.StringIO(), width=200)
    demo.demo(tmp_path, shown)
    assert [c.model for c in asked] == (["testbed", "smollm2"] if there else ["testbed"])
    assert ("tokensieve real get smollm2" in shown.file.getvalue()) is not there
    found = read_questions(asked[0].data).items
    assert [(q.question, q.answers[0], q.kind) for q in found] == [
        (s.question, s.answer, s.kind) for s in from_testbed(5, 0)
    ]
    if there:
        assert len(list(asked[1].data.glob("*.txt"))) == demo.TEXTS


def test_every_method_of_the_demo_reaches_both_costs():
    model, _ = testbed.load()
    made, left = equal.cells(model, [*BASELINES, *demo.METHODS], demo.MEANS, "mean", Shape(576, 12))
    assert len(made) == (len(BASELINES) + len(demo.METHODS)) * len(demo.MEANS)
    assert left == {}
    assert [c.key for c in made if c.unranked] == []
    assert all(abs(ts.cost(model, c.plan, 576, 12).mean - c.keep) < 4 for c in made)


def test_a_real_model_is_there_once_it_was_made(tmp_path):
    assert not real.there("minilm", tmp_path)
    real.get("minilm", tmp_path)
    assert real.there("minilm", tmp_path)
