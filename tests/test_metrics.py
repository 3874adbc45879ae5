"""Metrics of answers: against worked examples, and against the libraries of the field where they are installed."""

import sys
from importlib.util import find_spec

import pytest

from tokensieve.bench.metrics import METRICS

needs_fuzz = pytest.mark.skipif(find_spec("rapidfuzz") is None, reason="rapidfuzz is not installed")


@pytest.mark.parametrize(
    ("name", "said", "answers", "score"),
    [
        ("exact", " A red  Car.", ["a red car"], 1),
        ("exact", "red", ["a red car", "Red"], 1),
        ("exact", "reddish", ["red"], 0),
        ("contains", "It is a Red car.", ["red car", "blue"], 1),
        ("contains", "It is covered", ["red"], 0),
        ("contains", "anything", ["?"], 0),
        ("relaxed", "1,049", ["1000"], 1),
        ("relaxed", "1051", ["1000"], 0),
        ("relaxed", "$96", ["100"], 1),
        ("relaxed", "49%", ["0.5"], 1),
        ("relaxed", "0.04", ["0"], 0),
        ("relaxed", "0", ["0"], 1),
        ("relaxed", "Blue", ["blue"], 1),
        ("vqa", "2", ["two"] * 3 + ["3"] * 7, 0.9),
        ("vqa", "two", ["2"] * 10, 1),
        ("vqa", "a dog", ["dog", "cat"], 0.5),
        ("vqa", "The Dog!", ["dog"], 1),
        ("vqa", "can't say", ["cant say"], 1),
        ("f1", "the big red car", ["a red car"], 0.8),
        ("f1", "the", ["a"], 1),
        ("f1", "blue", ["red"], 0),
        ("choice", "B", ["B"], 1),
        ("choice", "b", ["B"], 0),
    ],
)  # fmt: skip
def test_worked_examples(name, said, answers, score):
    assert METRICS.get(name)(said, answers) == pytest.approx(score)


@needs_fuzz
@pytest.mark.parametrize(
    ("name", "said", "answers", "score"),
    [
        ("anls", "Hello  World", ["hello world"], 1),
        ("anls", "hallo", ["hello", "goodbye"], 0.8),
        ("anls", "abc", ["xyz"], 0),
        ("anls", "abcd", ["abxy"], 0),
        ("rouge-l", "the cat sat on the mat", ["the cat is on the mat"], 10 / 12),
        ("rouge-l", "", ["words"], 0),
    ],
)
def test_worked_examples_of_distances(name, said, answers, score):
    assert METRICS.get(name)(said, answers) == pytest.approx(score)


@needs_fuzz
def test_rouge_is_that_of_the_library():
    theirs = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"])
    pairs = [
        ("police killed the gunman", "the gunman police killed"),
        ("a b c d e f g", "a c b d f e g h"),
        ("one", "two"),
    ]
    for ours, known in pairs:
        assert METRICS.get("rouge-l")(ours, [known]) == pytest.approx(theirs.score(known, ours)["rougeL"].fmeasure)


def test_without_the_extra_the_command_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "rapidfuzz.distance", None)
    with pytest.raises(ImportError, match=r"pip install '.\[bench\]'"):
        METRICS.get("anls")("a", ["b"])
