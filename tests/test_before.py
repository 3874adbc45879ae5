"""The benchmark against a commit before: its ratios, its judgement, and what it refuses."""

import sys

import pytest

from benchmarks import before as script


def test_equal_sides_are_fine_and_slower_ones_are_not():
    before = [1.0, 1.1, 0.9, 1.0, 1.2, 0.8, 1.0]
    same = script.compared(
        [b * s for b, s in zip(before, (1.01, 0.99, 1.0, 1.03, 0.97, 1.0, 1.0), strict=True)], before
    )
    assert same["low"] <= 1 <= same["high"]
    assert script.fine(same)
    slower = script.compared(
        [b * s for b, s in zip(before, (1.05, 1.04, 1.06, 1.05, 1.05, 1.04, 1.06), strict=True)], before
    )
    assert slower["ratio"] == pytest.approx(1.05)
    assert 1.03 < slower["low"] <= slower["ratio"] <= slower["high"] < 1.07
    assert not script.fine(slower)


def test_a_slow_spell_that_both_sides_meet_is_none_of_theirs():
    before = [1.0, 5.0, 1.0, 9.0, 1.0, 1.0, 2.0]
    assert script.compared([1.01 * b for b in before], before)["ratio"] == pytest.approx(1.01)


def test_small_costs_pass_even_where_they_are_certain():
    assert script.fine({"ratio": 1.015, "low": 1.01, "high": 1.02})
    assert script.fine({"ratio": 1.1, "low": 0.95, "high": 1.2})
    assert not script.fine({"ratio": 1.03, "low": 1.001, "high": 1.06})


def test_what_cannot_be_measured_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no such commit"):
        script.main("no-such-commit", tmp_path / "before.json")
    with pytest.raises(ValueError, match="7 or more"):
        script.main("HEAD", tmp_path / "before.json", rounds=6)
    with pytest.raises(ValueError, match="--only prefil; it must be of prefill, decode, selection, search"):
        script.main("HEAD", tmp_path / "before.json", only=("prefil",))


def side(tmp_path, monkeypatch, lines):
    """A process that says these lines in place of a side."""
    monkeypatch.setattr(script, "COMMAND", [sys.executable, "-c", f"for line in {lines!r}: print(line, flush=True)"])
    return script.Child(tmp_path)


def test_a_side_that_runs_other_code_is_refused(tmp_path, monkeypatch):
    child = side(tmp_path, monkeypatch, ['{"tokensieve": "/elsewhere/tokensieve/__init__.py", "things": []}'])
    with pytest.raises(RuntimeError, match="was imported, and not what is in"):
        child.begun()
    child.end()


def test_a_side_that_dies_is_named(tmp_path, monkeypatch):
    child = side(tmp_path, monkeypatch, [])
    with pytest.raises(RuntimeError, match="ended with 0"):
        child.begun()
    child.end()
